"""The speed of a model on this machine, measured in about two seconds before the work starts."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from llmkick.errors import KickError
from llmkick.models.engine.engine import Engine
from llmkick.models.language_model import LanguageModel, ScoreRequest
from llmkick.models.transformers_model import TransformersModel

# Side and number of the square matrices for the speed of this machine, and the share of it that a model reaches.
MATRIX, PRODUCTS, EFFICIENCY = 1024, 4, 0.4
# Tokens of a short pass, which costs a model's weights rather than its tokens. Tokens of longer ones, each with the
# most seconds of the pass before it with which it is tried.
SHORT, LONG = 8, ((64, 2.0), (256, 0.4))
# How fast a processor reads weights, about.
BYTES_A_SECOND = 1e10
# Passes of a length, of which the fastest counts: in the first pass of each length a processor prepares its kernels,
# which takes several times as long. No further one begins after so many seconds.
REPEATS, REPEATED_SECONDS = 3, 1.0


@dataclass(frozen=True, kw_only=True)
class ModelSpeed:
    """Seconds of a forward pass: `pass_seconds`, and `token_seconds` for each token in it."""

    pass_seconds: float
    token_seconds: float
    operations_a_second: float


def measured_speed(model: LanguageModel) -> ModelSpeed | None:
    """The speed of a model in this process, from a few short passes; None for any other model."""
    engine = model.engine if isinstance(model, TransformersModel) else None
    if not isinstance(engine, Engine) or engine.device.type == "meta":
        return None
    try:
        return _from_passes(engine, model.info.parameters)
    except (KickError, RuntimeError):  # the work itself tells what is wrong with the model
        return None


def _from_passes(engine: Engine, parameters: int) -> ModelSpeed:
    short = _fastest(engine, SHORT, least=2)
    token, longest = short / SHORT / 2, short
    for count, most in LONG:
        if count >= engine.max_tokens or longest > most:
            break
        longest = _fastest(engine, count)
        token = max(longest - short, longest / 10) / (count - SHORT)
    return ModelSpeed(
        pass_seconds=max(0.0, short - SHORT * token),
        token_seconds=token,
        operations_a_second=2 * parameters / token,
    )


def _fastest(engine: Engine, tokens: int, *, least: int = 1) -> float:
    """The seconds of the fastest of several passes of so many tokens, `least` of them however long they take."""
    seconds = [_seconds(engine, tokens)]
    while len(seconds) < least or (len(seconds) < REPEATS and sum(seconds) < REPEATED_SECONDS):
        seconds.append(_seconds(engine, tokens))
    return min(seconds)


def _seconds(engine: Engine, tokens: int) -> float:
    started = time.perf_counter()
    engine.logprobs([ScoreRequest("", (*range(tokens),))])
    return time.perf_counter() - started


def expected_speed(parameters: int, operations_a_second: float, dtype: torch.dtype) -> ModelSpeed:
    """The speed of a model that is not loaded, from the speed of a matrix product."""
    token = 2 * parameters / operations_a_second
    return ModelSpeed(
        pass_seconds=parameters * dtype.itemsize / BYTES_A_SECOND,
        token_seconds=token,
        operations_a_second=operations_a_second,
    )


@functools.cache
def machine_speed(dtype: torch.dtype, device: torch.device) -> float:
    """The estimated operations per second of a forward pass: a share of the speed of a matrix product.

    It is measured once per process.
    """
    left = torch.ones(MATRIX, MATRIX, dtype=dtype, device=device)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            left = (left @ left).clamp(-1, 1)
        float(left.sum())  # waits for an accelerator
        seconds.append(time.perf_counter() - started)
    return EFFICIENCY * PRODUCTS * 2 * MATRIX**3 / min(seconds)
