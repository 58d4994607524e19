"""Calibration text that the dense model samples itself, cached by model, length and seed.

Every row has draws of its own, which depend on the seed, the row and the position alone. Hence a smaller number of rows
is the beginning of a larger one, rows may be sampled together in any number, and sampling that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from llmkick.errors import ConfigError, NumericalError
from llmkick.files import cache_folder, writing_cache
from llmkick.models.engine.batch_budget import MemoryShortage
from llmkick.models.engine.cache_size import bytes_a_token
from llmkick.models.engine.fixed_steps import WORTHWHILE_STEPS, FixedSteps, suits_fixed_steps
from llmkick.models.engine.runner import Runner, read
from llmkick.models.transformers_model import TransformersModel

TokenIds = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

# Part of the cache key of self-sampled text: raise it when the sampling changes.
SAMPLING_VERSION = 2
# Rows sampled together. A step reads all weights once, whatever the number of rows, so more rows cost little until the
# products take longer than the reading.
SAMPLING_ROWS = 256
# Share of the device's memory, used or not, that the rows of a batch may take: the rows must not depend on what else
# the machine does.
MEMORY_SHARE = 0.15
# Positions after which the sampled text is kept on disk.
KEEP_EVERY = 16


def is_sampled(model: TransformersModel, *, sequences: int, length: int, seed: int) -> bool:
    """Whether the text is cached: then the model need not be in memory to be calibrated."""
    return len(_cached(model, sequences, length, seed)[1]) >= sequences


def self_sampled(
    model: TransformersModel, *, sequences: int, length: int, seed: int, progress: Progress | None = None
) -> TokenIds:
    """Windows (sequences, length) of text sampled by the model at temperature 1, from the cache if they are there.

    progress: called with the number of sampled tokens and of all tokens. Raises ConfigError for a model that is not in
    memory and for a cache that cannot be written, NumericalError for logits that are not finite.
    """
    file, tokens = _cached(model, sequences, length, seed)
    if len(tokens) >= sequences:
        return tokens[:sequences]
    if model.device.type == "meta":
        raise ConfigError(f"{model.info.name} is not in memory, so it cannot sample text to calibrate on")
    rows = _rows_together(model, length)
    while len(tokens) < sequences:
        start = len(tokens)

        def report(done: int, start: int = start) -> None:
            if progress is not None:
                progress(start * length + done, sequences * length)

        batch = range(start, min(sequences, start + rows))
        tokens = np.concatenate([tokens, _sample(model, batch, length, seed, _partial(file, batch), report)])
        _write(file, tokens)
        _partial(file, batch).unlink(missing_ok=True)
    return tokens


def _cached(model: TransformersModel, sequences: int, length: int, seed: int) -> tuple[Path, TokenIds]:
    """The file of the text, and the rows that it holds, perhaps fewer than `sequences`.

    A model that is not in memory only reads: it takes the text of either way of sampling, first that of this machine.
    """
    is_meta = model.device.type == "meta"
    once = torch.cuda.is_available() if is_meta else _allocates_once(model, length)
    file = _cache_file(model, length, seed, once=once)
    tokens = _read(file, length)
    if is_meta and len(tokens) < sequences:
        file = _cache_file(model, length, seed, once=not once)
        tokens = _read(file, length)
    return file, tokens


def _cache_file(model: TransformersModel, length: int, seed: int, *, once: bool) -> Path:
    """`once` is that of `_allocates_once`: text of one way of sampling is never continued in the other."""
    key = f"{model.info.digest}\0{model.info.dtype}\0{length}\0{seed}\0{SAMPLING_VERSION}"
    key += "\0allocated once" if once else ""
    return cache_folder("calibration") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def _partial(file: Path, batch: range) -> Path:
    """The file of a batch whose rows have not reached their full length."""
    return file.with_suffix(f".{batch.start}-{batch.stop}.part.npy")


def _read(file: Path, length: int | None = None) -> TokenIds:
    """The cached rows, none if there is no such file.

    A damaged file counts as missing: sampling again gives the same text.
    """
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached: TokenIds = np.load(file, allow_pickle=False)
        if cached.ndim == 2 and cached.dtype == np.int64 and length in (None, cached.shape[1]):
            return cached
    return np.zeros((0, length or 0), dtype=np.int64)


def _write(file: Path, tokens: TokenIds) -> None:
    # Hidden: `kick cache --clear` takes it for what is being written.
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp.npy")
    with writing_cache():
        file.parent.mkdir(parents=True, exist_ok=True)  # the cache may have been deleted while the model sampled
        np.save(temporary, tokens, allow_pickle=False)
        temporary.replace(file)


def _rows_together(model: TransformersModel, length: int) -> int:
    """How many rows the device's memory holds: their keys, values and activations, and the draw of a token."""
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = psutil.virtual_memory().total
    vocabulary = model.network.get_input_embeddings().weight.shape[0]
    row = bytes_a_token(model.network) * length + 32 * vocabulary
    return max(1, min(SAMPLING_ROWS, int(memory * MEMORY_SHARE / row)))


def draws(seed: int, row: int, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for the tokens of a row; fewer are the beginning of more."""
    return np.random.default_rng([seed, row]).random(count)


def chosen_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token of each row at which the distribution function exceeds its draw: (rows, vocabulary), (rows,) → (rows,).

    On the logits' device: only the draws are made elsewhere, so a seed means the same text on as many devices as
    rounding allows.
    """
    precise = _precise(logits.device)
    reached = torch.softmax(logits.to(precise), dim=-1).cumsum(dim=-1)
    wanted = uniform.to(device=logits.device, dtype=precise) * reached[:, -1]
    # The draw is below 1 but its product may be rounded up to the last sum.
    return torch.searchsorted(reached, wanted[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _sample(
    model: TransformersModel, batch: range, length: int, seed: int, partial: Path, report: Callable[[int], None]
) -> TokenIds:
    """Text sampled at temperature 1 from the start-of-text token: (rows, length) token ids.

    The first token of a window is the start token, as at the beginning of a document; after an end-of-text token the
    model goes on with the next document. `partial` keeps the positions that are sampled, from which the next call goes
    on. report: called with the number of tokens that are sampled. Raises NumericalError for logits that are not finite,
    at the latest where their tokens would be kept: a GPU is not waited for at each position.
    """
    runner = Runner(model.network, model.device, reusable=_allocates_once(model, length))
    draws_of = np.stack([draws(seed, row, length - 1) for row in batch])
    uniform = torch.from_numpy(draws_of).to(dtype=_precise(runner.device)).to(runner.device)
    kept = _beginning(model, len(batch), length, partial)
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    tokens[:, : kept.shape[1]] = torch.from_numpy(kept)
    tokens = tokens.to(runner.device)
    is_finite = torch.ones((), dtype=torch.bool, device=runner.device)
    with torch.inference_mode():
        text = _Continued(runner, kept, length)
        for position in range(kept.shape[1], length):
            logits = text.next_logits(tokens[:, :position])
            is_finite = is_finite & torch.isfinite(logits).all()
            chosen = tokens[:, position] = chosen_tokens(logits, uniform[:, position - 1])
            keeps, ends = position % KEEP_EVERY == 0, position + 1 == length
            if (keeps or ends) and not bool(is_finite):
                raise NumericalError(f"{model.info.name} gives NaN or Inf: it cannot sample text to calibrate on")
            if keeps:
                _write(partial, read(tokens[:, : position + 1]).numpy())
            if not ends:
                text.add(chosen[:, None], to_come=length - position - 1)
            report((position + 1) * len(batch))
    return read(tokens).numpy()


def _beginning(model: TransformersModel, rows: int, length: int, partial: Path) -> TokenIds:
    """What is sampled already, (rows, tokens): the kept positions, otherwise the start token."""
    kept = _read(partial)
    if kept.shape == (rows, kept.shape[1]) and 1 <= kept.shape[1] < length:
        return kept
    start = model.tokenizer.bos_token_id
    if start is None:
        start = model.tokenizer.eos_token_id
    return np.full((rows, 1), int(start or 0), dtype=np.int64)


def _allocates_once(model: TransformersModel, length: int) -> bool:
    """Whether keys and values lie in buffers for the whole text: on a GPU, where the network allows it.

    A CPU keeps the cache that the cached texts come from: other buffers may round another way.
    """
    from llmkick.models.engine.kv_cache import can_reuse_cache  # transformers takes long to import

    return model.device.type == "cuda" and can_reuse_cache(model.network, length)


class _Continued:
    """Rows of the same length that are continued token by token, through a cache where the network has one."""

    def __init__(self, runner: Runner, tokens: TokenIds, length: int) -> None:
        """`length` is that of the finished rows, in tokens."""
        self._runner = runner
        self._state = runner.prefill([tuple(row) for row in tokens.tolist()]) if runner.takes_cache else None
        self._fixed: FixedSteps | None = None
        self._may_fix = runner.reusable and suits_fixed_steps(runner.network, runner.device)
        if self._state is not None and runner.reusable:
            self._state.reserve(length - tokens.shape[1])

    def next_logits(self, tokens: Tensor) -> Tensor:
        """(rows, tokens), all tokens so far → (rows, vocabulary) float32, which the next step may overwrite."""
        return self._runner.next_logits(tokens) if self._state is None else self._state.next_logits

    def add(self, chosen: Tensor, *, to_come: int) -> None:
        """Go on with one more token for each row, (rows, 1), which so many more will follow."""
        if self._state is None:
            return
        if self._fixed is not None:
            self._fixed.step(self._state, chosen)
            return
        self._runner.step(self._state, chosen)
        if self._may_fix and to_come >= WORTHWHILE_STEPS:
            self._may_fix = False
            notes: list[str] = []  # not those of the engine, which are about answers
            self._fixed = FixedSteps.of(self._runner, self._state, chosen, notes, remembers=False)
            for note in notes:
                warnings.warn(f"sampling calibration text: {note}", MemoryShortage, stacklevel=2)
