"""Finished blocks of a compression on disk: the cache keeps them, and a stopped compression resumes from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkick.compression.walk.report import CompressionReport, LayerReport
from llmkick.errors import ConfigError, ModelError
from llmkick.files import write_text_atomically
from llmkick.models.checkpoints.packed import FORMAT, Packed, pack, read_packed, write_packed

STATE_FILE = "compression.json"


@dataclass(kw_only=True)
class Tally:
    """What a compression has done so far: reports of its layers, warnings, bytes and seconds."""

    layers: list[LayerReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dense_bytes: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0


class FinishedBlocks:
    """A folder with the compressed layers of each finished block, the tally, and at the end the report.

    `key` identifies the compression: a folder with another key raises ConfigError, a damaged one ModelError. The folder
    is consistent after every `add`: even if the process is killed, all blocks that it counts are complete.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self._key = dict(key)
        self.count = 0
        self.tally = Tally()
        self.report: CompressionReport | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_FILE).is_file():
            self._read_state()

    def _read_state(self) -> None:
        file = self.folder / STATE_FILE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            key, form, self.count = state["key"], state["format"], int(state["finished"])
            layers = [LayerReport(**{**layer, "shape": tuple(layer["shape"])}) for layer in state["tally"]["layers"]]
            self.tally = Tally(**{**state["tally"], "layers": layers})
            self.report = None if state["report"] is None else CompressionReport.from_json(state["report"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file} is damaged ({error}): delete the folder {self.folder}") from error
        if key != self._key or form != FORMAT:
            raise ConfigError(
                f"{self.folder} holds another compression ({key.get('recipe', 'unknown')}), not this one; delete it"
            )

    def add(self, index: int, layers: Mapping[str, Packed], tally: Tally) -> None:
        """Keep the compressed layers of block `index`, the next one."""
        assert index == self.count, f"block {index} after {self.count} finished ones"
        write_packed(self._file("block", index), layers)
        self.count, self.tally = index + 1, tally
        self._write_state()

    def complete(self, report: CompressionReport) -> None:
        """Keep the report when all blocks are finished, and delete the hidden states that only a resumed walk needs."""
        self.report = report
        self._write_state()
        for file in self.folder.glob("hidden-*"):
            file.unlink()

    def _write_state(self) -> None:
        report = None if self.report is None else asdict(self.report)
        state = {"format": FORMAT, "key": self._key, "finished": self.count, "tally": asdict(self.tally)}
        text = json.dumps({**state, "report": report}, ensure_ascii=False, indent=1)
        write_text_atomically(self.folder / STATE_FILE, text + "\n")

    def weights(self, index: int) -> Iterator[tuple[str, Tensor]]:
        """Layer names and weights of a finished block, on the CPU."""
        return read_packed(self._file("block", index))

    def files(self) -> list[Path]:
        """The files of all finished blocks, in order."""
        return [self._file("block", index) for index in range(self.count)]

    def save_hidden(self, index: int, hidden: Sequence[Tensor]) -> None:
        """Keep the hidden states that block `index` is given, and delete older ones."""
        write_packed(self._file("hidden", index), {str(n): pack(states) for n, states in enumerate(hidden)})
        for file in self.folder.glob("hidden-*"):
            if file != self._file("hidden", index):
                file.unlink()

    def load_hidden(self, index: int) -> tuple[int, list[Tensor]] | None:
        """`index` and the hidden states that this block is given; None when they must be computed again."""
        try:
            return index, [states for _, states in read_packed(self._file("hidden", index))]
        except ModelError:  # missing, or incomplete after a power failure
            return None

    def _file(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"
