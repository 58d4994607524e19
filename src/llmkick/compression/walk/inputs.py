"""What a block's layers are given while it runs on calibration text: statistics and a sample of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.walk.blocks import Block, LinearLayer

# Calibration tokens on which a layer's output error is measured.
ERROR_TOKENS = 128


class ForwardInputs:
    """What the layers are given in one forward, kept until it is over; whether it is still that must then be asked."""

    def __init__(self, *, copies: bool = False) -> None:
        """With `copies` nothing that the network does later to a layer's input matters."""
        self._copies = copies
        self._seen: list[tuple[LinearLayer, Tensor, int]] = []
        self._copied: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def see(self, layer: LinearLayer, inputs: Tensor) -> None:
        """Keep the input of a layer, of layers that share one the same tensor."""
        if self._copies:
            # The original is kept alive with it, so that an id names one tensor only.
            key = id(inputs), inputs._version
            _, inputs = self._copied.setdefault(key, (inputs, inputs.clone()))
        self._seen.append((layer, inputs, inputs._version))

    @property
    def changed(self) -> bool:
        """Whether the network has changed one of them in place since."""
        return any(inputs._version != version for _, inputs, version in self._seen)

    def __iter__(self) -> Iterator[tuple[LinearLayer, Tensor]]:
        return ((layer, inputs) for layer, inputs, _ in self._seen)


class InputRecord:
    """The inputs of a block's layers while it runs: statistics and a sample, once for each distinct input.

    `batches` is how many forwards there will be: the sample is taken evenly from all of them.
    """

    def __init__(self, block: Block, *, hessian: bool, squares: bool = True, batches: int) -> None:
        self._hessian, self._squares = hessian, squares
        self._sample_a_batch = -(-ERROR_TOKENS // max(1, batches))
        self._owner: dict[str, str] = {}
        self._statistics: dict[str, InputStatistics] = {}
        self._samples: dict[str, list[Tensor]] = {}
        # Inputs of the forward that is taken in, kept alive so that an id names one tensor only.
        self._live: dict[int, tuple[Tensor, str]] = {}
        self._shares = {layer.name for layer in block.layers if layer.form != "expert"}
        self.order: list[str] = []  # names of the layers in the order of their first run

    def add(self, forward: Iterable[tuple[LinearLayer, Tensor]]) -> None:
        """Take in what the layers were given in one forward, in the order in which they ran."""
        for layer, inputs in forward:
            self._see(layer, inputs)
        self._live.clear()

    def _see(self, layer: LinearLayer, inputs: Tensor) -> None:
        """Take in what a layer is given: q, k and v share one input, gate and up another."""
        if layer.name not in self._owner:
            self.order.append(layer.name)
        if layer.name in self._shares:
            _, owner = self._live.setdefault(id(inputs), (inputs, layer.name))
            known = self._owner.setdefault(layer.name, owner)
            if known == owner and owner != layer.name:
                return
        self._owner[layer.name] = layer.name
        # Experts see (tokens, in); some layers (sequences, heads, tokens, in).
        rows = inputs.unsqueeze(0) if inputs.dim() == 2 else inputs.flatten(1, -2)
        self._accumulate(layer.name, rows)

    def _accumulate(self, name: str, rows: Tensor) -> None:
        if name not in self._statistics:
            self._statistics[name] = InputStatistics(
                rows.shape[-1], hessian=self._hessian, squares=self._squares, name=name
            )
            self._samples[name] = []
        self._statistics[name].add(rows)
        tokens = rows.reshape(-1, rows.shape[-1])
        step = max(1, len(tokens) // self._sample_a_batch)
        sample = tokens[::step][: self._sample_a_batch]
        self._samples[name].append(sample.to(torch.float32, copy=True))  # a view would keep all rows alive

    def statistics_of(self, layer: LinearLayer) -> InputStatistics | None:
        """Statistics of the inputs a layer shares, None when it never ran."""
        return self._statistics.get(self._owner.get(layer.name, ""))

    def sample_of(self, layer: LinearLayer) -> Tensor | None:
        """A sample of a layer's inputs (tokens, in) in float32, None when it never ran."""
        pieces = self._samples.get(self._owner.get(layer.name, ""))
        return torch.cat(pieces) if pieces else None

    def forget(self, layer: LinearLayer, still_to_come: Sequence[LinearLayer]) -> None:
        """Let go of a layer's statistics unless one still to come shares them: they are the largest thing here."""
        owner = self._owner.get(layer.name, "")
        if all(self._owner.get(other.name) != owner for other in still_to_come):
            self._statistics.pop(owner, None)
            self._samples.pop(owner, None)
