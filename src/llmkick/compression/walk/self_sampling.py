"""Calibration text that the dense model samples itself, cached by model, size and seed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from llmkick.errors import ConfigError, NumericalError
from llmkick.files import cache_folder
from llmkick.models.engine.runner import Runner
from llmkick.models.transformers_model import TransformersModel

TokenIds = npt.NDArray[np.int64]

# Part of the cache key of self-sampled text: raise it when the sampling changes.
SAMPLING_VERSION = 1
# Rows sampled together: enough to keep a processor busy, few enough for long windows in a laptop's memory.
SAMPLING_ROWS = 16


def is_sampled(model: TransformersModel, *, sequences: int, length: int, seed: int) -> bool:
    """Whether the text is cached: then the model need not be in memory to be calibrated."""
    return _read_cached(_cache_file(model, sequences, length, seed), (sequences, length)) is not None


def self_sampled(
    model: TransformersModel,
    *,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> TokenIds:
    """Windows (sequences, length) of text sampled by the model at temperature 1, from the cache if they are there.

    progress: called with the number of sampled tokens and of all tokens. Raises ConfigError for a model that is not in
    memory, NumericalError for logits that are not finite.
    """
    file = _cache_file(model, sequences, length, seed)
    cached = _read_cached(file, (sequences, length))
    if cached is not None:
        return cached
    if model.device.type == "meta":
        raise ConfigError(f"{model.info.name} is not in memory, so it cannot sample text to calibrate on")
    generator = torch.Generator().manual_seed(seed)
    windows: list[TokenIds] = []
    for start in range(0, sequences, SAMPLING_ROWS):
        rows = min(SAMPLING_ROWS, sequences - start)

        def report(positions: int, start: int = start, rows: int = rows) -> None:
            if progress is not None:
                progress(start * length + rows * positions, sequences * length)

        windows.append(_sample(model, rows, length, generator, report))
    tokens = np.concatenate(windows)
    temporary = file.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, tokens, allow_pickle=False)
    temporary.replace(file)
    return tokens


def _cache_file(model: TransformersModel, sequences: int, length: int, seed: int) -> Path:
    key = f"{model.info.digest}\0{model.info.dtype}\0{sequences}\0{length}\0{seed}\0{SAMPLING_VERSION}"
    return cache_folder("calibration") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def _read_cached(file: Path, shape: tuple[int, int]) -> TokenIds | None:
    # A damaged file counts as missing: sampling again gives the same text.
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached: TokenIds = np.load(file, allow_pickle=False)
        if cached.shape == shape and cached.dtype == np.int64:
            return cached
    return None


def _sample(
    model: TransformersModel, rows: int, length: int, generator: torch.Generator, report: Callable[[int], None]
) -> TokenIds:
    """Text sampled at temperature 1 from the start-of-text token: (rows, length) token ids.

    The first token of a window is the start token, as at the beginning of a document; after an end-of-text token the
    model goes on with the next document. report: called with the number of positions that are sampled.
    """
    start = model.tokenizer.bos_token_id
    if start is None:
        start = model.tokenizer.eos_token_id
    runner = Runner(model.network, model.device)
    tokens = torch.full((rows, 1), int(start or 0), dtype=torch.long)
    with torch.inference_mode():
        state = runner.prefill([(int(start or 0),)] * rows, 0, None) if runner.takes_cache else None
        for position in range(1, length):
            logits = runner.next_logits(tokens.to(runner.device)) if state is None else state.next_logits
            if not bool(torch.isfinite(logits).all()):
                raise NumericalError(f"{model.info.name} gives NaN or Inf: it cannot sample text to calibrate on")
            # On the CPU whatever the device, so that a seed gives the same text on as many devices as possible.
            chosen = torch.multinomial(torch.softmax(logits.cpu(), dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, chosen], dim=1)
            if state is not None:
                runner.step(state, chosen.to(runner.device))
            report(position + 1)
    return tokens.numpy()
