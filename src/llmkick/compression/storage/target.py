"""The folder that a compressed model is written into: checked before, filled while it is compressed, then complete."""

from __future__ import annotations

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from llmkick.compression.storage.companions import write_companions
from llmkick.compression.storage.shards import ShardWriter, size_of, write_json
from llmkick.compression.storage.source_files import CONFIG, REPORT_FILE
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.walk.network_parts import NetworkPart
from llmkick.compression.walk.report import CompressionReport
from llmkick.files import require_space
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.references import SOURCE_FILE
from llmkick.models.transformers_model import TransformersModel
from llmkick.output_folder import check_target, claimed, filling, hidden_folders

# Room for configuration, tokenizer and report.
OTHER_BYTES = 50_000_000


def delete_left(folder: Path) -> None:
    """Delete what a command that was killed left on its way to a target, but no finished blocks."""
    for place in (*hidden_folders(folder, "weights"), *hidden_folders(folder, "new")):
        shutil.rmtree(place, ignore_errors=True)


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
    All is on the disk when it appears, so that a power failure cannot take what finished blocks are then deleted for.
    Returns the report with all warnings. Raises ConfigError when the folder cannot be written or is not empty, another
    command writes there, or the disk has less than `size` free bytes.
    """
    check_target(folder)
    require_space(folder, size + OTHER_BYTES, f"saving {model.info.name}")
    with claimed(folder), filling(folder, last=CONFIG) as temporary:
        notes = write_companions(model, report, temporary, form)
        notes += write(temporary)
        report = replace(report, warnings=(*report.warnings, *notes))
        write_json(temporary / REPORT_FILE, report.to_json())
        # With the source precision a later compression can warn that these weights had been rounded before.
        origin = {"file": model.info.name, "digest": model.info.digest, "source_precision": report.source_precision}
        write_json(temporary / SOURCE_FILE, origin)
    return report


class StreamedTarget(ABC):
    """A folder that is being written while a meta model is compressed: each part of the network while it is in memory.

    Its weights go into a hidden folder, see `hidden_folders`. A context, in which the target is `claimed`: afterwards,
    or when another compression to the same target begins, the hidden folder is gone. besides: bytes that are written to
    the same disk meanwhile. stored: how the model is written, if that is known. `fits` is False where the format turns
    out to hold other tensors than it seemed: the folder cannot be finished, and is to be written from the finished
    blocks.
    Raises ConfigError when the folder is not empty, another command writes there, or the disk is too small.
    """

    def __init__(
        self, meta_model: MetaModel, folder: Path, *, besides: int = 0, stored: StoredModel | None = None
    ) -> None:
        check_target(folder)
        self._meta_model, self._folder, self._besides = meta_model, folder, besides
        self._model = meta_model.model
        self._stored = stored or StoredModel(meta_model.model, meta_model.files)
        self._places = hidden_folders(folder, "weights")
        self._hidden = self._places[0]
        self.fits = True

    @property
    @abstractmethod
    def _form(self) -> str:
        """How the weights are stored, for the model card."""

    @abstractmethod
    def _size(self) -> int:
        """Bytes of all weights that will be written."""

    def _begin(self) -> None:  # noqa: B027 - most, but not all, have something to open
        """Open files in the hidden folder."""

    @abstractmethod
    def put(self, part: NetworkPart) -> None:
        """Write a part of the network."""

    @abstractmethod
    def _close(self) -> None:
        """Write what is left of the weights."""

    @abstractmethod
    def _configure(self, temporary: Path) -> list[str]:
        """Write the configuration into a folder that has the weights. Returns warnings."""

    def _abandon(self) -> None:  # noqa: B027 - as above
        """Close open files as they are."""

    def __enter__(self) -> Self:
        require_space(self._folder, self._size() + self._besides + OTHER_BYTES, f"saving {self._model.info.name}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(claimed(self._folder))
            self._delete()  # of a compression that was killed
            stack.callback(self._delete)
            self._hidden.mkdir(parents=True)
            self._begin()
            self._entered = stack.pop_all()
        return self

    def finish(self, report: CompressionReport) -> CompressionReport:
        """The complete folder. Result and errors as in `write_model`."""
        assert self.fits, f"{self._folder} cannot be finished"
        self._close()

        def write(temporary: Path) -> list[str]:
            for file in self._hidden.iterdir():
                file.replace(temporary / file.name)
            return self._configure(temporary)

        return write_model(self._model, report, self._folder, 0, write, form=self._form)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._entered:
            self._abandon()

    def _delete(self) -> None:
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)


class StreamedShards(StreamedTarget):
    """A folder with the files that huggingface_hub would make, all of whose tensors are known before."""

    @cached_property
    def _planned(self) -> dict[str, Tensor]:
        """All tensors by their names in the folder, on the meta device."""
        return self._stored.planned()

    def _size(self) -> int:
        return sum(map(size_of, self._planned.values()))

    def _begin(self) -> None:
        self._waiting: dict[str, Tensor] = {}
        self._shards = ShardWriter(self._hidden, self._planned)

    def _put_network(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors by their names in the network; those that are stored merged with others wait for these."""
        waiting = {**self._waiting, **tensors}
        whole = {name for group in self._stored.form.groups_of(waiting) for name in group.targets}
        self._shards.put(self._stored.tensors({name: waiting[name] for name in whole}))
        self._waiting = {name: waiting[name] for name in waiting.keys() - whole}

    def _close(self) -> None:
        self._shards.put(self._stored.other_tensors())
        self._shards.close()

    def _abandon(self) -> None:
        self._shards.__exit__(None, None, None)
