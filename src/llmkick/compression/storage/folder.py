"""A compressed model in a folder: a Hugging Face checkpoint that any tool can load, or the compact form of llmkick."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from llmkick.compression.storage.companions import write_companions
from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.shards import ShardWriter, bundles, size_of, write_json
from llmkick.compression.storage.source_files import CONFIG, REPORT_FILE
from llmkick.compression.storage.stored_model import NAMES, OTHER, LazyTensors, StoredModel
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.streamed_blocks import StreamedBlocks
from llmkick.compression.walk.unchanged import names_outside_layers
from llmkick.errors import ConfigError
from llmkick.files import new_folder, require_space
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import pack, write_packed
from llmkick.models.checkpoints.packed_folder import write_manifest
from llmkick.models.checkpoints.references import SOURCE_FILE
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.transformers_model import TransformersModel

# Room for configuration, tokenizer and report.
OTHER_BYTES = 50_000_000
# Folders of ours inside a target that was there before.
_OURS = re.compile(r"\.llmkick\..*\.partial")


def check_target(folder: Path) -> None:
    """Raise ConfigError when the folder cannot be written, or is not empty: existing files are never overwritten."""
    try:
        target = folder.resolve()
        if target.exists() and (not target.is_dir() or not all(_OURS.fullmatch(p.name) for p in target.iterdir())):
            raise ConfigError(f"{folder} exists and is not empty; choose another folder")
        place = next(path for path in (target, *target.parents) if path.exists())
        tempfile.TemporaryDirectory(prefix=".llmkick.", suffix=".partial", dir=place).cleanup()
    except (OSError, RuntimeError) as error:  # a RuntimeError for links that lead in a circle
        raise ConfigError(f"{folder} cannot be written ({error}); choose another folder") from error


def hidden_folders(folder: Path, name: str) -> tuple[Path, Path]:
    """The hidden folder for what is on its way to a target, then where it is if the target has come or gone since.

    Inside a target that is there: it may be a mount point, or all that this user may write to. Otherwise beside it.
    """
    target = folder.resolve()
    inside, beside = target / f".llmkick.{name}.partial", target.parent / f".{target.name}.{name}.partial"
    return (inside, beside) if target.is_dir() else (beside, inside)


def save_folder(model: TransformersModel, report: CompressionReport, folder: Path) -> CompressionReport:
    """Write weights in the model's dtype, the other files of its source and the report, which is returned.

    The folder appears complete or not at all. Warnings are added to the report for what cannot travel.
    Raises ConfigError when the folder is not empty or the disk is too small, ModelError for a model that cannot be
    written so that transformers reads it back.
    """
    stored, state = StoredModel(model), model.network.state_dict()
    stored.form.refuse_unreadable()

    def write(temporary: Path) -> list[str]:
        with ShardWriter(temporary, stored.planned()) as shards:
            shards.put(itertools.chain(stored.tensors(state), stored.other_tensors()))
            shards.close()
        return write_config(model, temporary)

    size = sum(size_of(state[name]) for name in stored.names) + stored.other_bytes
    return write_model(model, report, folder, size, write, form=f"{model.info.dtype} weights")


class StreamedFolder:
    """A folder that is being written while a meta model is compressed; otherwise as `save_folder`.

    Its weights go into a hidden folder, see `hidden_folders`. A context: afterwards, or when another compression to the
    same folder begins, the hidden folder is gone. besides: bytes that are written to the same disk meanwhile.
    """

    def __init__(self, meta_model: MetaModel, folder: Path, *, besides: int = 0) -> None:
        check_target(folder)
        self._meta_model, self._folder = meta_model, folder
        self._stored = StoredModel(meta_model.model)
        self._stored.form.refuse_unreadable()
        self._size = meta_model.bytes + self._stored.other_bytes + besides
        self._places = hidden_folders(folder, "weights")
        self._hidden = self._places[0]

    def __enter__(self) -> StreamedFolder:
        self._delete()  # of a compression that was killed
        require_space(self._folder, self._size + OTHER_BYTES, f"saving {self._meta_model.info.name}")
        self._hidden.mkdir(parents=True)
        self._shards = ShardWriter(self._hidden, self._stored.planned())
        self._waiting: dict[str, Tensor] = {}
        return self

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors of the network; those that are stored merged with others wait for these."""
        waiting = {**self._waiting, **tensors}
        whole = {name for group in self._stored.form.groups_of(waiting) for name in group.targets}
        self._shards.put(self._stored.tensors({name: waiting[name] for name in whole}))
        self._waiting = {name: waiting[name] for name in waiting.keys() - whole}

    def finish(self, report: CompressionReport) -> CompressionReport:
        """The complete folder. Result and errors as in `save_folder`."""
        self._shards.put(self._stored.other_tensors())
        self._shards.close()

        def write(temporary: Path) -> list[str]:
            for file in self._hidden.iterdir():
                file.replace(temporary / file.name)
            return write_config(self._meta_model.model, temporary)

        model = self._meta_model.model
        return write_model(model, report, self._folder, 0, write, form=f"{self._meta_model.info.dtype} weights")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.__exit__(kind, error, trace)
        self._delete()

    def _delete(self) -> None:
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)


def save_packed(model: TransformersModel | MetaModel, finished: FinishedBlocks, folder: Path) -> CompressionReport:
    """Write a compressed model in compact form, see `models.checkpoints.packed`.

    model: the dense, compressed or meta model, for the unchanged weights. finished: all blocks.
    Result and errors as in `save_folder`.
    """
    unchanged, report = UnchangedWeights(model), report_of(finished)
    stored = StoredModel(unchanged.model)

    def write(temporary: Path) -> list[str]:
        files = _write_unchanged(unchanged, temporary)
        for file in finished.files():
            files.append(f"packed-{file.name}")
            _link_or_copy(file, temporary / files[-1])
        facts: dict[str, object] = {"recipe": report.recipe, "dtype": unchanged.model.info.dtype}
        if stored.others:
            facts |= {OTHER: _write_other_parts(stored, temporary)}
        write_manifest(temporary, files, **facts, **{NAMES: stored.stored_names})
        return write_config(unchanged.model, temporary)

    size = unchanged.bytes + report.stored_bytes + stored.other_bytes
    return write_model(unchanged.model, report, folder, size, write, form="llmkick's compact form, for `kick` only")


def _write_unchanged(unchanged: UnchangedWeights, folder: Path) -> list[str]:
    """Write the weights outside the compressed layers; returns the names of the files."""
    files: list[str] = []
    for number, bundle in enumerate(bundles(unchanged.items())):
        files.append(f"packed-rest-{number:05d}.safetensors")
        write_packed(folder / files[-1], {name: pack(tensor) for name, tensor in bundle.items()})
    return files


def _write_other_parts(stored: StoredModel, folder: Path) -> str:
    """Write the parts of the source that the network does not load; returns the name of the file.

    It is no .safetensors file, because those are the weights of the packed model.
    """
    file = folder / "other-parts.tensors"
    write_tensors(file, dict(stored.other_tensors()))
    return file.name


class UnchangedWeights(LazyTensors):
    """The tensors of a model outside its compressed layers by name, see `names_outside_layers`; read one at a time."""

    def __init__(self, model: TransformersModel | MetaModel) -> None:
        self.model = model.model if isinstance(model, MetaModel) else model
        network, self._state = self.model.network, self.model.network.state_dict()
        names = names_outside_layers(network, decoder_blocks(network))
        super().__init__(names, StreamedBlocks(model).read if isinstance(model, MetaModel) else self._state.__getitem__)

    @property
    def bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(size_of(self._state[name]) for name in self)


def report_of(finished: FinishedBlocks) -> CompressionReport:
    """The report of a compression whose blocks are all finished."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    return finished.report


def write_model(
    model: TransformersModel,
    report: CompressionReport,
    folder: Path,
    size: int,
    write: Callable[[Path], list[str]],
    *,
    form: str,
) -> CompressionReport:
    """Create a folder from `write`, with the other files of the source, the report and its origin.

    It appears complete or not at all; an empty folder that is there stays, and gets the files when all are written, its
    configuration last.
    write: writes weights and configuration, returns warnings. form: how the weights are stored, for the model card.
    Returns the report with all warnings. Raises ConfigError when the folder cannot be written or is not empty, or the
    disk has less than `size` free bytes.
    """
    check_target(folder)
    require_space(folder, size + OTHER_BYTES, f"saving {model.info.name}")
    with _filling(folder.resolve()) as temporary:
        notes = write_companions(model, report, temporary, form)
        notes += write(temporary)
        report = replace(report, warnings=(*report.warnings, *notes))
        write_json(temporary / REPORT_FILE, report.to_json())
        # With the source precision a later compression can warn that these weights had been rounded before.
        origin = {"file": model.info.name, "digest": model.info.digest, "source_precision": report.source_precision}
        write_json(temporary / SOURCE_FILE, origin)
    return report


@contextlib.contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, or whose files move into it, when the block ends without an error.

    A folder that is there may be a mount point, or that in which the user's shell is, and so is not replaced.
    """
    if not folder.exists():
        with new_folder(folder) as temporary:
            yield temporary
        return
    temporary, _ = hidden_folders(folder, "new")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    moved: list[Path] = []
    try:
        yield temporary
        # The configuration last: nothing opens a folder without it.
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG):
            moved.append(path.replace(folder / path.name))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Link the file where the file system allows it, otherwise copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
