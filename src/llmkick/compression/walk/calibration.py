"""Token windows that calibrate a compression: drawn from documents, or sampled by the dense model itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmkick.compression.walk.documents import c4_shard, read_documents
from llmkick.compression.walk.pocket_text import pocket_text
from llmkick.compression.walk.self_sampling import TokenIds, self_sampled
from llmkick.errors import ConfigError, DataError
from llmkick.files import named_path
from llmkick.models.language_model import ModelInfo
from llmkick.models.transformers_model import TransformersModel

# A CPU takes minutes for a thousand tokens of a model with more parameters.
SLOW_PARAMETERS = 1_000_000_000


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
    source: str = "auto",
    sequences: int = 32,
    length: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Draw `sequences` windows of `length` tokens.

    source: "self" (text that the model samples; it is cached), "pocket" (texts of this package), "auto" (one of the
    two, see `chosen_source`), "c4" (the first training shard, from the hub), or a .txt, .json(l) or .gz file or a
    folder of such files. Documents that are not longer than a window are skipped. A smaller number of windows is the
    beginning of a larger one.
    progress: called with the number of sampled tokens and of all tokens. Raises ConfigError for settings that do not
    fit the model, DataError for a source with too few long documents, ModelError when C4 cannot be fetched.
    """
    if sequences < 1 or length < 2:
        raise ConfigError(f"calibration needs sequences >= 1 and length >= 2; got {sequences} and {length}")
    if length > model.max_tokens:
        raise ConfigError(f"calibration length {length} exceeds the model's context of {model.max_tokens} tokens")
    source = chosen_source(source, model.info, model.device)
    if source == "self":
        tokens = self_sampled(model, sequences=sequences, length=length, seed=seed, progress=progress)
    else:
        origin, documents = _documents(source)
        tokens = draw_windows(documents, model.tokenize, sequences=sequences, length=length, seed=seed, origin=origin)
    return Calibration(tokens=tokens, source=source, seed=seed)


def _documents(source: str) -> tuple[str, list[str]]:
    """The name of a text source for messages, and its documents."""
    if source == "pocket":
        return "the pocket texts", [pocket_text()]
    path = c4_shard() if source == "c4" else named_path(source)
    return str(path), list(read_documents(path))


def refuse_small_corpus(source: str, tokenize: Callable[[str], list[int]], *, sequences: int, length: int) -> None:
    """Raise DataError if a text has fewer tokens than the windows, which then cannot but repeat it.

    Counted are the documents that are longer than a window, as long as that takes. Sampled text has no end.
    """
    origin, documents = _documents(source)
    wanted, total = sequences * length, 0
    for document in documents:
        tokens = len(tokenize(document))
        total += tokens if tokens > length else 0
        if total >= wanted:
            return
    raise DataError(
        f"calibration.sequences {sequences}: as many windows of {length} tokens are {wanted:,} tokens, and "
        f"{origin} has {total:,} in documents longer than a window; compare fewer windows, or give more text"
    )


def chosen_source(source: str, info: ModelInfo, device: torch.device) -> str:
    """Return "pocket" or "self" for "auto": large models on a CPU sample slowly. Other sources are returned as given.

    The choice depends on the model and the device alone, so that every run of a study makes the same.
    """
    if source != "auto":
        return source
    slow = device.type == "cpu" and info.parameters > SLOW_PARAMETERS
    return "pocket" if slow else "self"


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
