"""The state of a training on disk, from which a training that was stopped goes on: a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkick.compression.walk.finished_blocks import DamagedBlocksError
from llmkick.errors import ModelError
from llmkick.models.checkpoints.tensor_writer import write_tensors

STATE_FILE = "training.safetensors"


@dataclass(kw_only=True)
class TrainingState:
    """How far a training is. Losses are in nats a token, measured on the same windows at every check.

    best: the trained matrices at the check with the smallest loss. losses: of the checks so far. stopped: why it ended
    before its last step; empty if it did not. over: there are no steps left.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    micro: int = 0  # windows that run at a time …
    length: int = 0  # … and tokens of each
    scale: float = 1.0  # of the loss, where gradients pass through float16
    losses: list[float] = field(default_factory=list)
    best_loss: float | None = None
    notes: list[str] = field(default_factory=list)
    stopped: str = ""
    over: bool = False


def write_state(folder: Path, key: Mapping[str, Any], state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Write the state atomically: the file of an earlier step is whole until this one is."""
    metadata = {"state": json.dumps(asdict(state)), "key": json.dumps(key, sort_keys=True)}
    write_tensors(folder / STATE_FILE, dict(tensors), metadata)


def read_state(folder: Path, key: Mapping[str, Any]) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """The state and its tensors, or None.

    Raises DamagedBlocksError for a damaged file, ModelError for that of another training.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / STATE_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata()
            state = TrainingState(**json.loads(metadata["state"]))
            is_this = metadata["key"] == json.dumps(key, sort_keys=True)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedBlocksError(f"{file} is damaged ({error}): delete the folder {folder}", folder) from error
    if not is_this:
        raise ModelError(f"{file} is of another training: delete the folder {folder}")
    return state, tensors


def delete_state(folder: Path) -> None:
    """Delete the state of a training whose weights are kept."""
    (folder / STATE_FILE).unlink(missing_ok=True)
