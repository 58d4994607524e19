"""The speed of a model on this machine, measured in under a second before the work starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from llmkick.errors import KickError
from llmkick.models.engine.engine import Engine
from llmkick.models.language_model import LanguageModel, ScoreRequest
from llmkick.models.transformers_model import TransformersModel

# Side of the square matrices for the speed of this machine, and the share of that speed that a model reaches.
MATRIX, EFFICIENCY = 1024, 0.4
# Tokens of a short pass, which costs a model's weights rather than its tokens, and of longer ones.
SHORT, LONG = 8, (64, 256)
# How fast a processor reads weights, about.
BYTES_A_SECOND = 1e10
# No longer pass is tried that would take more than this many seconds.
LONGEST_TRIAL = 0.4


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
    _seconds(engine, 2)  # the first pass of a network is slower
    short = _seconds(engine, SHORT)
    token, tokens, longest = short / SHORT / 2, SHORT, short
    for count in LONG:
        if count >= engine.max_tokens or longest * count / tokens > LONGEST_TRIAL:
            break
        longest, tokens = _seconds(engine, count), count
        token = max(longest - short, longest / 10) / count
    return ModelSpeed(
        pass_seconds=max(0.0, short - SHORT * token),
        token_seconds=token,
        operations_a_second=2 * parameters / token,
    )


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


def machine_speed(dtype: torch.dtype, device: torch.device) -> float:
    """The estimated operations per second of a forward pass: a share of the speed of a matrix product."""
    left = torch.ones(MATRIX, MATRIX, dtype=dtype, device=device)
    float((left @ left).sum())
    started, repeats = time.perf_counter(), 4
    for _ in range(repeats):
        left = (left @ left).clamp(-1, 1)
    float(left.sum())  # waits for an accelerator
    return EFFICIENCY * repeats * 2 * MATRIX**3 / (time.perf_counter() - started)
