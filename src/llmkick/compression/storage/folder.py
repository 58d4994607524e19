"""A compressed model in a folder: a Hugging Face checkpoint that any tool can load, or the compact form of llmkick."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

from torch import Tensor

from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.shards import SHARD_BYTES, ShardWriter, size_of
from llmkick.compression.storage.stored_model import NAMES, OTHER, LazyTensors, StoredModel
from llmkick.compression.storage.target import StreamedShards, StreamedTarget, write_model
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.network_parts import NetworkPart
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.streamed_blocks import StreamedBlocks
from llmkick.compression.walk.unchanged import names_outside_blocks, names_outside_layers
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import pack
from llmkick.models.checkpoints.packed_file import write_packed
from llmkick.models.checkpoints.packed_folder import write_manifest
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.transformers_model import TransformersModel
from llmkick.output_folder import hidden_folders

_PACKED = "llmkick's compact form, for `kick` only"


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


class StreamedFolder(StreamedShards):
    """A Hugging Face checkpoint that is written while a meta model is compressed; otherwise as `save_folder`."""

    @property
    def _form(self) -> str:
        return f"{self._model.info.dtype} weights"

    def _begin(self) -> None:
        self._stored.form.refuse_unreadable()
        super()._begin()

    def put(self, part: NetworkPart) -> None:
        """Write all tensors of a part."""
        self._put_network(part.tensors)

    def _configure(self, temporary: Path) -> list[str]:
        return write_config(self._model, temporary)


def save_packed(model: TransformersModel | MetaModel, finished: FinishedBlocks, folder: Path) -> CompressionReport:
    """Write a compressed model in compact form, see `models.checkpoints.packed`.

    model: the dense, compressed or meta model, for the unchanged weights. finished: all blocks.
    Result and errors as in `save_folder`.
    """
    unchanged, report = UnchangedWeights(model), report_of(finished)
    stored = StoredModel(unchanged.model)

    def write(temporary: Path) -> list[str]:
        rest = _Rest(temporary)
        for name, tensor in unchanged.items():
            rest.add(name, tensor, finished.digests.get(name, ""))
        rest.close()
        blocks = []
        for file in finished.files():
            blocks.append(f"packed-{file.name}")
            if not _is_linked(file, temporary / blocks[-1]):
                shutil.copy2(file, temporary / blocks[-1])
        return _describe_packed(stored, unchanged.model, report.recipe, [*rest.files, *blocks], temporary)

    size = unchanged.bytes + report.stored_bytes + stored.other_bytes
    return write_model(unchanged.model, report, folder, size, write, form=_PACKED)


class StreamedPacked(StreamedTarget):
    """A folder in compact form that is written while a meta model is compressed; otherwise as `save_packed`.

    It shares the files of the finished blocks where the file system allows it. besides: with their bytes where not.
    """

    def __init__(
        self,
        meta_model: MetaModel,
        folder: Path,
        *,
        recipe: str,
        besides: int = 0,
        stored: StoredModel | None = None,
    ) -> None:
        super().__init__(meta_model, folder, besides=besides, stored=stored)
        self._recipe = recipe

    @property
    def _form(self) -> str:
        return _PACKED

    def _size(self) -> int:
        return UnchangedWeights(self._meta_model).bytes + self._stored.other_bytes

    def _begin(self) -> None:
        self._rest, self._blocks = _Rest(self._hidden), list[str]()

    def put(self, part: NetworkPart) -> None:
        """Write the tensors that no layer holds, and the layers of a block: the file that was just written of them."""
        for name, tensor in part.unchanged.items():
            self._rest.add(name, tensor, part.digests.get(name, ""))
        if part.kept is None:
            return
        self._blocks.append(f"packed-{part.kept.file.name}")
        target = self._hidden / self._blocks[-1]
        if _is_linked(part.kept.file, target):
            return
        if part.kept.wholes is None:
            shutil.copy2(part.kept.file, target)
        else:
            write_packed(target, part.kept.layers, part.kept.wholes)

    def _close(self) -> None:
        self._rest.close()

    def _configure(self, temporary: Path) -> list[str]:
        files = [*self._rest.files, *self._blocks]
        return _describe_packed(self._stored, self._model, self._recipe, files, temporary)


class _Rest:
    """Writes the weights outside the compressed layers into files of at most SHARD_BYTES, or with one tensor each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, tuple[Tensor, str]] = {}
        self.files: list[str] = []

    def add(self, name: str, tensor: Tensor, digest: str) -> None:
        """Write a tensor, or hold it until a file is full. digest: of the tensor, empty where it is not known."""
        if self._held and self._size + size_of(tensor) > SHARD_BYTES:
            self.close()
        self._held[name] = tensor, digest
        if self._size >= SHARD_BYTES:
            self.close()

    @property
    def _size(self) -> int:
        return sum(size_of(tensor) for tensor, _ in self._held.values())

    def close(self) -> None:
        """Write what is held."""
        if self._held:
            self.files.append(f"packed-rest-{len(self.files):05d}.safetensors")
            packed = {name: pack(tensor, digest=digest) for name, (tensor, digest) in self._held.items()}
            write_packed(self._folder / self.files[-1], packed)
            self._held.clear()


def _describe_packed(
    stored: StoredModel, model: TransformersModel, recipe: str, files: list[str], folder: Path
) -> list[str]:
    """Write what a folder in compact form holds beside its weights. Returns warnings."""
    facts: dict[str, object] = {"recipe": recipe, "dtype": model.info.dtype}
    if stored.others:
        facts |= {OTHER: _write_other_parts(stored, folder)}
    write_manifest(folder, files, **facts, **{NAMES: stored.stored_names})
    return write_config(model, folder)


def _write_other_parts(stored: StoredModel, folder: Path) -> str:
    """Write the parts of the source that the network does not load; returns the name of the file.

    It is no .safetensors file, because those are the weights of the packed model.
    """
    file = folder / "other-parts.tensors"
    write_tensors(file, dict(stored.other_tensors()))
    return file.name


class UnchangedWeights(LazyTensors):
    """The tensors of a model outside its compressed layers by name, see `names_outside_layers`; read one at a time.

    Those outside the blocks come first, as in a compression.
    """

    def __init__(self, model: TransformersModel | MetaModel) -> None:
        self.model = model.model if isinstance(model, MetaModel) else model
        network, self._state = self.model.network, self.model.network.state_dict()
        blocks = decoder_blocks(network)
        outside = set(names_outside_blocks(network, blocks))
        names = sorted(names_outside_layers(network, blocks), key=lambda name: name not in outside)
        super().__init__(names, StreamedBlocks(model).read if isinstance(model, MetaModel) else self._state.__getitem__)

    @property
    def bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(size_of(self._state[name]) for name in self)


def report_of(finished: FinishedBlocks) -> CompressionReport:
    """The report of a compression whose blocks are all finished."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    return finished.report


def can_share(work: Path, folder: Path) -> bool:
    """Whether files of a folder of finished blocks get a second name on their way to a target: tried with an empty one.

    One file system may know no second names, or refuse them between places of it that are mounted apart.
    """
    target = next(path for path in hidden_folders(folder, "weights")[0].parents if path.exists())
    source = next(path for path in (work, *work.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(prefix=".llmkick.", suffix=".partial", dir=source) as probe:
            name = target / f"{Path(probe.name).stem}.link.partial"
            if not _is_linked(Path(probe.name), name):
                return False
            name.unlink()
    except OSError:
        return False
    return True


def _is_linked(source: Path, target: Path) -> bool:
    """Make a second name of a file, if the file system allows it; whether it does."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
