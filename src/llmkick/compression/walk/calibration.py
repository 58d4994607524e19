"""Token windows that calibrate a compression: drawn from documents, or sampled by the dense model itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmkick.compression.walk.documents import c4_shard, read_documents
from llmkick.compression.walk.self_sampling import TokenIds, self_sampled
from llmkick.errors import ConfigError, DataError
from llmkick.models.transformers_model import TransformersModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Calibration windows: `tokens` (sequences, tokens) int64, the source they come from, and the seed."""

    tokens: TokenIds
    source: str
    seed: int

    @property
    def digest(self) -> str:
        """sha256 over shape and token ids."""
        header = f"{self.tokens.shape}\0".encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.tokens, dtype="<i8").tobytes()).hexdigest()


def as_calibration(calibration: Calibration | npt.ArrayLike) -> Calibration:
    """A Calibration as it is, or token ids (sequences, tokens) wrapped into one.

    Raises ConfigError for anything that is not a non-empty two-dimensional integer array.
    """
    if isinstance(calibration, Calibration):
        return calibration
    tokens = np.asarray(calibration)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(
            f"calibration must be integer token ids (sequences, tokens); got {tokens.dtype} of shape {tokens.shape}"
        )
    return Calibration(tokens=tokens.astype(np.int64), source="token ids", seed=0)


def calibrate(
    model: TransformersModel,
    *,
    source: str = "self",
    sequences: int = 32,
    length: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Draw `sequences` windows of `length` tokens.

    source: "self" (text that the model samples; it is cached), "c4" (the first training shard, from the hub), or a
    .txt, .json(l) or .gz file or a folder of such files. Documents that are not longer than a window are skipped.
    progress: called with the number of sampled tokens and of all tokens. Raises ConfigError for settings that do not
    fit the model, DataError for a source with too few long documents, ModelError when C4 cannot be fetched.
    """
    if sequences < 1 or length < 2:
        raise ConfigError(f"calibration needs sequences >= 1 and length >= 2; got {sequences} and {length}")
    if length > model.max_tokens:
        raise ConfigError(f"calibration length {length} exceeds the model's context of {model.max_tokens} tokens")
    if source == "self":
        tokens = self_sampled(model, sequences=sequences, length=length, seed=seed, progress=progress)
    else:
        path = c4_shard() if source == "c4" else Path(source).expanduser()
        tokens = draw_windows(
            list(read_documents(path)), model.tokenize, sequences=sequences, length=length, seed=seed, origin=str(path)
        )
    return Calibration(tokens=tokens, source=source, seed=seed)


def draw_windows(
    documents: Sequence[str],
    tokenize: Callable[[str], list[int]],
    *,
    sequences: int,
    length: int,
    seed: int,
    origin: str,
) -> TokenIds:
    """Random windows of random documents, with the draws in the same order as in the code of Wanda and SparseGPT.

    After a document with at most `length` tokens another is drawn. Each document is tokenised once. The number of draws
    is bounded, so that documents which are all too short give a DataError, naming their `origin`, and no endless loop.
    """
    generator = random.Random(seed)  # noqa: S311 - sampling, not cryptography
    tokenised: dict[int, list[int]] = {}
    windows: list[list[int]] = []
    draws = 0
    while len(windows) < sequences and documents:
        if draws > 50 * (sequences + len(documents)):
            break
        draws += 1
        index = generator.randint(0, len(documents) - 1)
        if index not in tokenised:
            ids = tokenize(documents[index])
            tokenised[index] = ids if len(ids) > length else []
        ids = tokenised[index]
        if ids:
            start = generator.randint(0, len(ids) - length - 1)
            windows.append(ids[start : start + length])
        elif len(tokenised) == len(documents) and not any(tokenised.values()):
            break
    if len(windows) < sequences:
        raise DataError(
            f"{origin}: found {len(windows)} of {sequences} calibration windows: among its {len(documents)} "
            f"documents none, or too few, have more than {length} tokens; use a shorter length or longer documents"
        )
    return np.array(windows, dtype=np.int64)
