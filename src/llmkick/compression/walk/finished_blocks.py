"""Finished blocks of a compression on disk: the cache keeps them, and a stopped compression resumes from them."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from llmkick.compression.walk.background import BackgroundWorker
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.network_parts import BlockFinish, KeptBlock
from llmkick.compression.walk.report import CompressionReport, LayerErrors, LayerReport
from llmkick.errors import ConfigError, ModelError
from llmkick.files import naming, write_text_atomically
from llmkick.models.checkpoints.packed import Packed, Place
from llmkick.models.checkpoints.packed_file import FORMAT, READABLE, read_checked, write_packed
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.checkpoints.weight_files import TensorFiles, read_tensor
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import PartedDigest

STATE_FILE = "compression.json"
# Hidden states are kept when as much time has passed: what a stopped walk computes again takes less.
STATES_SECONDS = 60.0
# … and at least so many times as long as writing them took: on a slow disk that is a twentieth of the time at most.
STATES_TIMES_WRITTEN = 20

Result = TypeVar("Result")


class DamagedBlocksError(ModelError):
    """Finished blocks on disk that are damaged or missing; without their `folder` they are made anew."""

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class NotKeptError(OSError):
    """A finished model whose blocks could not be written: `result` is the model in memory and its report."""

    def __init__(self, error: OSError, result: tuple[TransformersModel, CompressionReport]) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.result = result


@dataclass(kw_only=True)
class Tally:
    """What a compression has done so far: reports of its layers, warnings, bytes and seconds.

    adapter_bytes, recovery_seconds: the part of `stored_bytes` and of `seconds` that a recovery has added. recovered:
    the errors of its layers.
    """

    layers: list[LayerReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dense_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    adapter_bytes: int = 0
    recovery_seconds: float = 0.0
    recovered: list[LayerErrors] = field(default_factory=list)


class FinishedBlocks:
    """A folder with the compressed layers of each finished block, the tally, and at the end the report.

    `key` identifies the compression: a folder with another key raises ConfigError, a damaged one DamagedBlocksError.
    The folder is consistent at any moment: even if the process is killed, all blocks that it counts are complete. A
    thread of its own packs and writes, in the order in which blocks are added.

    digests: of tensors of the network by name: those that the layers make up, and others as far as they were computed
    when their block was finished.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = dict(key)
        self.count = 0
        self.tally = Tally()
        self.report: CompressionReport | None = None
        self.digests: dict[str, str] = {}
        self._wholes: dict[str, PartedDigest] = {}  # of parameters that hold experts, while these are packed
        self._worker = BackgroundWorker(f"packing for {folder.name}")
        self._states_at = time.monotonic()  # when hidden states were last kept, or the walk began
        self._states_wait = STATES_SECONDS
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).is_file():
            self._read_state()

    def _read_state(self) -> None:
        file = self.folder / STATE_FILE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            key, form, self.count = state["key"], state["format"], int(state["finished"])
            layers = [LayerReport.from_json(layer) for layer in state["tally"]["layers"]]
            errors = [LayerErrors(**layer) for layer in state["tally"].get("recovered", ())]
            self.tally = Tally(**{**state["tally"], "layers": layers, "recovered": errors})
            self.digests = dict(state.get("digests", {}))
            self.report = None if state["report"] is None else CompressionReport.from_json(state["report"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedBlocksError(
                f"{file} is damaged ({error}): delete the folder {self.folder}", self.folder
            ) from error
        if key != self.key or form not in READABLE:
            raise ConfigError(
                f"{self.folder} holds another compression ({key.get('recipe', 'unknown')}), not this one; delete it"
            )
        missing = next((block for block in self._block_files if not block.is_file()), None)
        if missing is not None:
            raise DamagedBlocksError(
                f"{missing} is not there, but {STATE_FILE} counts it: delete the folder {self.folder}", self.folder
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Afterwards all that was given to the thread is on disk; an error of its is raised here at the latest."""
        try:
            yield
        finally:
            self._worker.close()

    def soon(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call a function in the thread, after all that it was given before."""
        return self._worker.submit(function, *arguments)

    def add(
        self, index: int, layers: Mapping[str, Future[Packed]], tally: Tally, finish: BlockFinish | None = None
    ) -> None:
        """Keep the compressed layers of block `index`, the next one, when they are packed.

        finish: is given them in the thread, and returns digests. While the block before is not on disk, this waits, so
        that the weights of two blocks at most are held for the thread.
        """
        assert index == self.count, f"block {index} after {self.count} finished ones"
        self._worker.wait_for_earlier()
        self.count, self.tally = index + 1, tally
        as_now = replace(
            tally, layers=list(tally.layers), warnings=list(tally.warnings), recovered=list(tally.recovered)
        )
        self._worker.submit_last(self._keep, index, layers, as_now, finish)

    def whole_of(self, layer: LinearLayer) -> PartedDigest | None:
        """The digest of the parameter that holds an expert, to which its packing is to add it; None for other layers.

        The parameter is hashed once, expert by expert, and no expert by itself.
        """
        if layer.form != "expert":
            return None
        stored = layer.stored
        return self._wholes.setdefault(layer.place.parameter, PartedDigest(stored.dtype, stored.shape))

    def _keep(self, index: int, layers: Mapping[str, Future[Packed]], tally: Tally, finish: BlockFinish | None) -> None:
        packed = {name: layer.result() for name, layer in layers.items()}
        places = {name: layer.layout.place or Place(parameter=name) for name, layer in packed.items()}
        parted = dict.fromkeys(places[name].parameter for name, layer in packed.items() if not layer.layout.digest)
        wholes = {parameter: self._wholes.pop(parameter) for parameter in parted}
        digests = {parameter: whole.hexdigest() for parameter, whole in wholes.items()}
        own = {name: layer.layout for name, layer in packed.items() if places[name].expert is None}
        # A layout with a checksum is of format 1, whose digest may be of the transpose.
        digests |= {places[name].parameter: layout.digest for name, layout in own.items() if not layout.checksum}
        file = self._file("block", index)
        write_packed(file, packed, wholes)
        if finish is not None:
            digests |= finish(KeptBlock(file=file, layers=packed, digests=digests, wholes=wholes))
        self.digests |= digests
        self._write_state(index + 1, tally)

    def complete(self, report: CompressionReport) -> None:
        """Keep the report when all blocks are finished, and delete the hidden states that only a resumed walk needs."""
        self._worker.close()
        self.report = report
        self._write_state(self.count, self.tally)
        _delete(list(self.folder.glob("hidden-*")))

    def _write_state(self, count: int, tally: Tally) -> None:
        report = None if self.report is None else self.report.to_json()
        state = {"format": FORMAT, "key": self.key, "finished": count, "tally": asdict(tally)}
        # Without line breaks: thousands of experts make it long, and it is written for every block.
        text = json.dumps({**state, "digests": self.digests, "report": report}, ensure_ascii=False)
        with naming(self.folder / STATE_FILE):
            write_text_atomically(self.folder / STATE_FILE, text + "\n")

    def weights(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """Layer names and weights of a finished block, on the CPU. Raises DamagedBlocksError."""
        for name, _, weight in self.packed(index):
            yield name, weight

    def packed(self, index: int) -> Iterator[tuple[str, Packed, Tensor]]:
        """Layer names, compact forms and weights (out, in) of a finished block. Raises DamagedBlocksError."""
        self._worker.wait()
        file = self.file_of(index)
        with self.reading(file):
            yield from read_checked(file)

    def file_of(self, index: int) -> Path:
        """The file with the layers of a finished block."""
        return self._file("block", index)

    def files(self) -> list[Path]:
        """The files of all finished blocks, in order. Raises DamagedBlocksError where one is cut short or missing."""
        for file in self._block_files:
            with self.reading(file):
                TensorFiles(self.folder, [file])
        return self._block_files

    @contextlib.contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """A ModelError while the file of a block is read becomes a DamagedBlocksError, which says what to do."""
        try:
            yield
        except ModelError as error:
            what = str(error) if str(file) in str(error) else f"{file}: {error}"
            raise DamagedBlocksError(
                f"{what}: delete the folder {self.folder}, and the same command makes it anew", self.folder
            ) from error

    @property
    def _block_files(self) -> list[Path]:
        return [self._file("block", index) for index in range(self.count)]

    def keep_hidden(self, index: int, hidden: Sequence[Tensor]) -> None:
        """Keep the hidden states that block `index` is given, unless it is cheaper to compute them again.

        That is so if only few seconds have passed since others were kept; a walk that goes on computes them from those.
        A disk that has no room for them does not end the walk, which needs none.
        """
        if time.monotonic() - self._states_at >= self._states_wait:
            self._states_at = time.monotonic()
            self._worker.submit(self._save_hidden, index, list(hidden))

    def _save_hidden(self, index: int, hidden: Sequence[Tensor]) -> None:
        started = time.monotonic()
        file, tensors = self._file("hidden", index), {str(n): states for n, states in enumerate(hidden)}
        earlier = [other for other in self.folder.glob("hidden-*") if other != file]
        try:
            try:
                write_tensors(file, tensors)
            except OSError:
                if not earlier:
                    raise
                _delete(earlier)  # those of an earlier block take as much room
                write_tensors(file, tensors)
            _delete(earlier)
        except OSError:
            self._states_wait = math.inf
            return
        self._states_wait = max(STATES_SECONDS, STATES_TIMES_WRITTEN * (time.monotonic() - started))

    def load_hidden(self, index: int) -> tuple[int, list[Tensor]] | None:
        """The last block up to `index` whose hidden states were kept, and these; None when there is none."""
        for file in sorted(self.folder.glob("hidden-*.safetensors"), reverse=True):
            block = int(file.stem.removeprefix("hidden-"))
            with contextlib.suppress(ModelError, ValueError):  # incomplete, or of an older version
                states = {int(name): read_tensor(file, name) for name in TensorFiles(self.folder, [file]).names}
                if block <= index:
                    return block, [states[number] for number in sorted(states)]
        return None

    def _file(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"


def count_finished(folder: Path) -> int:
    """How many blocks a folder counts as finished; 0 for one that holds no compression, or an unreadable one."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return int(state["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the report of a compression; False also for one that cannot be read."""
    try:
        return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["report"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def delete_blocks(folder: Path) -> None:
    """Delete a folder of finished blocks. If that is stopped in the middle, what is left counts no blocks."""
    with contextlib.suppress(OSError):
        (folder / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _delete(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
