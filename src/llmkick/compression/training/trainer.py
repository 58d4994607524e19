"""The loop of a training: steps, checks on windows held out, limits, and what is done when it diverges."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmkick.compression.recoveries import Training
from llmkick.compression.training.losses import counted_tokens, distillation_loss, next_token_loss
from llmkick.compression.training.state import TrainingState, read_state, write_state
from llmkick.compression.training.student import Student
from llmkick.errors import ConfigError, ModelError
from llmkick.models.memory import attempt

CHECK_STEPS = 10  # steps between two checks
SAVE_SECONDS = 60.0  # the state is written at a check when as much time has passed
# A training diverges when a check's loss is so many times that of the first, or has risen at so many checks in a row.
DIVERGED, RISES = 1.5, 3
HELD_OUT_SHARE, MOST_HELD_OUT = 8, 2  # one of eight windows is held out for the checks, and two at most
WARM_UP, CLIP = 0.1, 1.0  # share of the steps in which the learning rate rises; largest norm of a gradient
TOKENS_AT_ONCE_CPU = 2048
FLOAT16_SCALE = 2.0**16  # of a loss whose gradients pass through float16, which has no values below 6e-8
SHORTEST_PIECE = 32  # tokens of a window that is cut because memory runs out
NOT_KEPT = "the training could not be kept"  # the beginning of a note


def _held_out(windows: int) -> int:
    """How many windows are held out for the checks."""
    return min(MOST_HELD_OUT, windows // HELD_OUT_SHARE)


def check_token_limit(training: Training, windows: int, length: int) -> None:
    """Raise ConfigError if a limit of tokens allows no step on so many windows of `length` tokens."""
    least = min(training.batch, windows - _held_out(windows)) * length
    if training.tokens is not None and training.tokens < least and training.steps:
        raise ConfigError(f"{training.tokens:,} tokens are less than a step reads, {least:,}; give more")


@dataclass(kw_only=True)
class Trainer:
    """Trains the adapters of a student. `run` ends with the matrices of the check with the smallest loss in place.

    windows: (sequences, tokens). key: identifies the training in its folder, where its state is kept; None keeps none.
    """

    student: Student
    dense: nn.Module
    windows: Tensor
    training: Training
    seed: int
    key: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    progress: Callable[[int, int], None] | None = None
    state: TrainingState = field(default_factory=TrainingState)

    def __post_init__(self) -> None:
        count = len(self.windows)
        held_out = _held_out(count)
        self._checked = self.windows[count - held_out :] if held_out else self.windows[:MOST_HELD_OUT]
        self._trained = self.windows[: count - held_out]
        self._distils = self.training.objective == "distillation"
        self._parameters = self.student.parameters()
        self._best = self._snapshot()
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=self.training.learning_rate, weight_decay=0.0, foreach=False
        )
        # More tokens at a time are no faster on a CPU, and their logits take more memory.
        most = max(1, TOKENS_AT_ONCE_CPU // self.windows.shape[1])
        self.state.micro = self._batch if self.windows.device.type == "cuda" else min(self._batch, most)
        self.state.length = self.windows.shape[1]
        self.state.scale = FLOAT16_SCALE if self.student.has_float16 else 1.0
        self._saved_at = time.monotonic()

    @property
    def _batch(self) -> int:
        return min(self.training.batch, len(self._trained))

    @property
    def _steps(self) -> int:
        """The last step: the given one, or what the limit of tokens allows."""
        steps, tokens = self.training.steps, self.training.tokens
        return steps if tokens is None else min(steps, tokens // (self._batch * self.windows.shape[1]))

    def run(self) -> TrainingState:
        """Train from the state in the folder, if there is one, to the end."""
        check_token_limit(self.training, *self.windows.shape)
        self._resume()
        state = self.state
        if not state.losses:
            state.best_loss = self.loss_of(self.student.network)
            state.losses = [state.best_loss]
            if not math.isfinite(state.losses[0]):
                raise ModelError("the loss of the compressed model is NaN or Inf before any training")
        with self._clock():
            while not state.over:
                self._advance()
        self._put(self._best)
        return state

    def _advance(self) -> None:
        """One step, and a check where one is due."""
        state = self.state
        if state.step >= self._steps:
            state.over, state.stopped = True, "limit of tokens" if self._steps < self.training.steps else ""
            return
        if self.training.minutes is not None and self._seconds() >= 60 * self.training.minutes:
            self._check()
            state.over, state.stopped = True, state.stopped or "limit of minutes"
            return
        loss = self._step()
        if not math.isfinite(loss):
            self._diverge(f"the loss of step {state.step + 1} is NaN or Inf")
            return
        state.step += 1
        if self.progress is not None:
            self.progress(state.step, self._steps)
        if state.step % CHECK_STEPS == 0 or state.step == self._steps:
            self._check()

    def _check(self) -> None:
        """Compare the loss with those before; keep the matrices if it is the smallest."""
        state = self.state
        loss = self.loss_of(self.student.network)
        state.losses.append(loss)
        recent = state.losses[-RISES - 1 :]
        rises = len(recent) > RISES and all(b > a for a, b in itertools.pairwise(recent))
        if not math.isfinite(loss) or loss > DIVERGED * state.losses[0] or rises:
            self._diverge(f"at step {state.step} the loss on the windows of the check is {loss:.3g}")
        elif state.best_loss is None or loss < state.best_loss:
            state.best_loss, self._best = loss, self._snapshot()
        if self.folder is not None and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def _diverge(self, what: str) -> None:
        state = self.state
        first, best = state.losses[0], state.best_loss
        state.over, state.stopped = True, "diverged"
        state.notes.append(
            f"training diverged and was stopped: {what}, {first:.3g} at first; the best state, {best:.3g}, was kept; "
            f"give a smaller learning rate (now {self.training.learning_rate:g})"
        )

    # Losses

    def loss_of(self, network: Any) -> float:
        """The loss of a network on the windows of the checks, in nats a token."""
        pieces = torch.split(self._checked, 1)
        with torch.no_grad():
            total = sum(float(self._summed_loss(network, piece)) for piece in pieces)
        return total / sum(counted_tokens(piece, distils=self._distils) for piece in pieces)

    def _summed_loss(self, network: Any, ids: Tensor) -> Tensor:
        logits = network(input_ids=ids, use_cache=False).logits
        if not self._distils:
            return next_token_loss(logits, ids.to(logits.device))
        with torch.no_grad():
            dense: Tensor = self.dense(input_ids=ids, use_cache=False).logits
        return distillation_loss(logits, dense.to(logits.device))

    # Steps

    def _step(self) -> float:
        """One step of the optimizer: the mean loss of a token before it; NaN where a gradient is not finite."""
        state = self.state
        ids = self._windows_of(state.step)
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            total = [0.0]
            reason = attempt(lambda total=total: self._accumulate(ids, total))  # type: ignore[misc]
            if reason is not None:
                self._make_smaller(reason)
                continue
            self._unscale_gradients()
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), CLIP))
            if math.isfinite(norm) or not math.isfinite(total[0]) or state.scale == 1:
                break
            state.scale /= 2  # the scaled gradients, not the loss, are too large for float16
        if not math.isfinite(norm) or not math.isfinite(total[0]):
            return math.nan
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(state.step)
        self._optimizer.step()
        state.tokens += ids.numel()
        return total[0]

    def _accumulate(self, ids: Tensor, total: list[float]) -> None:
        count = counted_tokens(ids, distils=self._distils)
        some = torch.split(ids, self.state.micro)
        for piece in (piece for windows in some for piece in torch.split(windows, self.state.length, dim=1)):
            with torch.enable_grad():
                loss = self._summed_loss(self.student.network, piece) / count
                (loss * self.state.scale).backward()  # type: ignore[no-untyped-call]
            total[0] += float(loss.detach())

    def _unscale_gradients(self) -> None:
        for parameter in self._parameters.values():
            if parameter.grad is not None and self.state.scale != 1:
                parameter.grad /= self.state.scale

    def _make_smaller(self, reason: str) -> None:
        """Halve what runs at a time after an allocation that failed."""
        state = self.state
        if state.micro > 1:
            state.micro //= 2
            what = f"{state.micro} windows run at a time"
        elif self.state.length > SHORTEST_PIECE:
            self.state.length = -(-self.state.length // 2)
            what = f"windows are cut into pieces of {self.state.length} tokens, which see no text before them"
        else:
            raise ConfigError(
                f"memory is too short for a training, even with pieces of {state.length} tokens ({reason}); give "
                "shorter windows, a smaller rank, or a device with more memory"
            )
        state.notes.append(f"memory ran short in the training ({reason.splitlines()[0][:120]}): from now on {what}")

    def _windows_of(self, step: int) -> Tensor:
        """The windows of a step: all of them in a new random order, again and again."""
        count, size = len(self._trained), self._batch
        places = range(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(count)
            for epoch in {place // count for place in places}
        }
        return self._trained[[int(orders[place // count][place % count]) for place in places]]

    def _learning_rate(self, step: int) -> float:
        """It rises linearly, then falls linearly to 0 at the end."""
        rise = max(1.0, WARM_UP * self._steps)
        return self.training.learning_rate * min(1.0, (step + 1) / rise) * (1 - step / self._steps)

    # The state

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data.copy_(values[name])

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        self._started = time.perf_counter()
        yield
        self.state.seconds = self._seconds()

    def _seconds(self) -> float:
        return self.state.seconds + time.perf_counter() - self._started

    def save(self) -> None:
        """Write the state, from which `run` goes on; where there is no room for it, the training goes on without."""
        assert self.folder is not None, "a training without a folder keeps no state"
        seconds, self.state.seconds = self.state.seconds, self._seconds()
        tensors = {f"now:{name}": value for name, value in self._snapshot().items()}
        tensors |= {f"best:{name}": value for name, value in self._best.items()}
        for name, parameter in self._parameters.items():
            tensors |= {f"{key}:{name}": value for key, value in self._optimizer.state[parameter].items()}
        try:
            write_state(self.folder, self.key, self.state, tensors)
        except OSError as error:
            others = [note for note in self.state.notes if not note.startswith(NOT_KEPT)]
            self.state.notes[:] = [*others, f"{NOT_KEPT} at step {self.state.step} ({error})"]
        self.state.seconds, self._saved_at = seconds, time.monotonic()

    def _resume(self) -> None:
        kept = None if self.folder is None else read_state(self.folder, self.key)
        if kept is None:
            return
        self.state, tensors = kept
        by_kind: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, matrix = name.partition(":")
            by_kind.setdefault(kind, {})[matrix] = tensor
        self._put(by_kind.pop("now"))
        self._best = {name: tensor.to(self.windows.device) for name, tensor in by_kind.pop("best").items()}
        for name, parameter in self._parameters.items():
            # A matrix that has had no gradient yet has none.
            moments = {kind: values[name] for kind, values in by_kind.items() if name in values}
            # The count of steps stays on the CPU, as AdamW has it.
            self._optimizer.state[parameter] = {
                kind: value.to(parameter.device) if value.dim() else value for kind, value in moments.items()
            }
