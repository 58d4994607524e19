"""Decoding steps of one shape, recorded once as a CUDA graph and replayed for every token.

A step of a large network on a GPU is some thousand small kernels, and starting them takes longer than running them.
A CUDA graph starts all of them at once, but only with tensors of the same size at the same place. So here attention
reads the whole buffer of the cache under a mask, and the column of the new token is a number on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from llmkick.models.engine.batch_budget import is_spread
from llmkick.models.engine.network import is_plain_sdpa
from llmkick.models.engine.prefilled import Prefilled
from llmkick.models.engine.runner import Runner
from llmkick.models.memory import is_out_of_memory

if TYPE_CHECKING:
    from llmkick.models.engine.kv_cache import PreallocatedLayer

# Recording is estimated to take as long as so many ordinary steps save. Fewer steps to come are not worth it.
WORTHWHILE_STEPS = 32
# By how much a recorded step may differ from an ordinary one, in shares of the range of a row's logits: the rounding of
# another kernel, and far less than a mask that the network reads in its own way makes.
TOLERANCE = 0.02


# Networks that turned out not to generate this way.
_refused: WeakSet[Any] = WeakSet()


def suits_fixed_steps(network: Any, device: torch.device) -> bool:
    """Whether a GPU holds the whole network, and every layer attends to all tokens by `sdpa`."""
    return is_plain_sdpa(network) and device.type == "cuda" and not is_spread(network)


def can_fix_steps(network: Any, device: torch.device) -> bool:
    """Whether `suits_fixed_steps`, and no attempt that is remembered has failed."""
    return network not in _refused and suits_fixed_steps(network, device)


class FixedSteps:
    """Steps that continue a batch in the buffers of its cache, until `is_full`.

    While they last, only `columns` counts the tokens in the cache: call `end` before anything else uses it.
    """

    def __init__(self, runner: Runner, state: Prefilled, last: Tensor) -> None:
        """Take over a batch after an ordinary step with the tokens `last` (rows, 1)."""
        self._runner = runner
        self._layers: list[PreallocatedLayer] = [layer for layer in state.cache.layers if layer.is_initialized]
        self._cache = state.cache
        self.columns = state.mask.shape[1]
        self._capacity = self._layers[0].capacity
        self._tokens = last.clone()
        self._positions = replace(state, lengths=state.lengths - 1).next_positions.clone()
        self._column = torch.tensor([self.columns - 1], device=runner.device)
        self._mask = self._additive(state.mask, runner.network.dtype)
        self._graph: Any = None
        self._logits = state.next_logits

    @classmethod
    def of(
        cls, runner: Runner, state: Prefilled, last: Tensor, notes: list[str], *, remembers: bool = True
    ) -> FixedSteps | None:
        """The steps that continue `state`; None where the network cannot run that way.

        A shortage of memory is written to `notes`: ordinary steps go on with less. `remembers` says whether a refusal
        holds for later batches too (`can_fix_steps`): what is no answer must not change the answers that follow it.
        """
        steps = cls(runner, state, last)
        before = [layer.column(steps.columns - 1) for layer in steps._layers]
        for layer in steps._layers:
            layer.pin(steps._column)
        try:
            is_alike = steps._record(state.next_logits)
        except Exception as error:  # noqa: BLE001 - whatever a network cannot do here, it did in an ordinary step
            is_alike = False
            if is_out_of_memory(error):
                notes.append(f"memory ran short on {runner.device} for a CUDA graph: decoding goes on without")
        if is_alike:
            return steps
        steps.end()
        for layer, columns in zip(steps._layers, before, strict=True):
            layer.set_column(steps.columns - 1, columns)
        if remembers:
            _refused.add(runner.network)
        return None

    @property
    def is_full(self) -> bool:
        """Whether the buffers have no column left."""
        return self.columns >= self._capacity

    def step(self, state: Prefilled, tokens: Tensor) -> None:
        """Continue `state` with one more token for each row, (rows, 1); its cache is right again after `end`."""
        self._tokens.copy_(tokens)
        self._positions.copy_(state.next_positions)
        self._column += 1
        self._mask.index_fill_(3, self._column, 0.0)
        if self._graph is None:
            self._logits = self._forward()
        else:
            self._graph.replay()
        self.columns += 1
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        state.lengths = state.lengths + 1
        state.next_logits = self._logits

    def end(self) -> None:
        """Hand the cache back to ordinary steps."""
        for layer in self._layers:
            layer.unpin(self.columns)
        self._graph = None

    def _record(self, expected: Tensor) -> bool:
        """Repeat the last step in fixed shapes; record it, if its logits are the `expected` ones (rows, vocabulary)."""
        device = self._runner.device
        if device.type != "cuda":
            return _is_alike(self._forward(), expected)
        with torch.cuda.device(device):
            before, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # What is allocated once only, such as the workspaces of cuBLAS, must be there before the recording; and a
            # network that waits for the GPU is found here, where that does no harm.
            side.wait_stream(before)
            with torch.cuda.stream(side), _no_waiting():
                found = self._forward()
            before.wait_stream(side)
            if not _is_alike(found, expected):
                return False
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    self._logits = self._forward()
            finally:
                torch.cuda.set_stream(before)  # a recording that fails leaves its own stream behind
            self._graph = graph
            graph.replay()
            return _is_alike(self._logits, expected)

    def _forward(self) -> Tensor:
        return self._runner.last_logits(self._tokens, mask=self._mask, positions=self._positions, cache=self._cache)

    def _additive(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """(rows, columns) ones and zeros → (rows, 1, 1, capacity), 0 for a token and -inf for anything else."""
        hidden = torch.full((len(mask), 1, 1, self._capacity), float("-inf"), dtype=dtype, device=mask.device)
        hidden[:, 0, 0, : mask.shape[1]].masked_fill_(mask.bool(), 0.0)
        return hidden


@contextmanager
def _no_waiting() -> Iterator[None]:
    """While this lasts, an operation for which the processor waits for the GPU raises an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _is_alike(found: Tensor, expected: Tensor) -> bool:
    finite = torch.isfinite(expected).all(1) & torch.isfinite(found).all(1)
    spread = expected.amax(1) - expected.amin(1)
    return bool((((found - expected).abs().amax(1) <= TOLERANCE * spread) | ~finite).all())
