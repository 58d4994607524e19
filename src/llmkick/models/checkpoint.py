"""The location and identity of a model's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Located files of a model: a Hugging Face folder, and where it came from.

    `packed` says that the folder is in the compact form of `models.checkpoints.packed`; `quantization` is the method,
    as transformers names it, where another tool stored the weights quantized; `stored_bytes` is the size of the
    weights as they came.
    """

    name: str
    revision: str
    folder: Path
    digest: str
    source_precision: str
    packed: bool = False
    quantization: str = ""
    stored_bytes: int = 0
