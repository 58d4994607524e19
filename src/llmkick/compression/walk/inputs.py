"""The inputs of a block's layers on calibration text: their statistics and a sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.processes import Processes
from llmkick.errors import ModelError

# Calibration tokens on which a layer's output error is measured.
ERROR_TOKENS = 128


class ForwardInputs:
    """The inputs of the layers in one forward, kept until it is over.

    They are references, so a network that works in place may change them afterwards: `changed` says whether it did.
    """

    def __init__(self, *, copies: bool = False) -> None:
        """With `copies` the inputs are copied, so that later changes do not matter."""
        self._copies = copies
        self._inputs: list[tuple[LinearLayer, Tensor, int]] = []
        self._copied: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def add(self, layer: LinearLayer, inputs: Tensor) -> None:
        """Keep the input of a layer; layers that share an input share the kept tensor."""
        if self._copies:
            # The original is kept alive with it, so that an id names one tensor only.
            key = id(inputs), inputs._version
            _, inputs = self._copied.setdefault(key, (inputs, inputs.clone()))
        self._inputs.append((layer, inputs, inputs._version))

    @property
    def changed(self) -> bool:
        """Whether the network has changed a kept input in place."""
        return any(inputs._version != version for _, inputs, version in self._inputs)

    def __iter__(self) -> Iterator[tuple[LinearLayer, Tensor]]:
        return ((layer, inputs) for layer, inputs, _ in self._inputs)


class InputRecord:
    """Statistics and a sample of the inputs of layers, once for each distinct input.

    Layers that share an input (q, k and v; gate and up) share its statistics, which belong to the first of them, the
    owner, unless `shares_inputs` is off: layers that share an input in some forwards only need statistics of their own.
    batches: the number of forwards, from all of which the sample is taken in equal parts, at random places.
    """

    def __init__(
        self,
        layers: Sequence[LinearLayer],
        *,
        hessian: bool,
        squares: bool = True,
        batches: int,
        shares_inputs: bool = True,
    ) -> None:
        self._hessian, self._squares = hessian, squares
        self._sample_a_batch = -(-ERROR_TOKENS // max(1, batches))
        self._owner: dict[str, str] = {}
        self._statistics: dict[str, InputStatistics] = {}
        self._samples: dict[str, list[Tensor]] = {}
        # Inputs of the current forward with their owners, kept alive so that an id names one tensor only.
        self._live: dict[int, tuple[Tensor, str]] = {}
        self._may_share = {layer.name for layer in layers if shares_inputs and layer.form != "expert"}
        self.order: list[str] = []  # names of the layers in the order of their first run

    def add(self, forward: Iterable[tuple[LinearLayer, Tensor]]) -> None:
        """Add the inputs of one forward, in the order in which the layers ran."""
        for layer, inputs in forward:
            self._add(layer, inputs)
        self._live.clear()

    def _add(self, layer: LinearLayer, inputs: Tensor) -> None:
        """Add the input of a layer, unless it is counted for another layer that shares it."""
        if layer.name not in self._owner:
            self.order.append(layer.name)
        if layer.name in self._may_share:
            _, owner = self._live.setdefault(id(inputs), (inputs, layer.name))
            earlier_owner = self._owner.setdefault(layer.name, owner)
            if earlier_owner == owner and owner != layer.name:
                return
            if earlier_owner not in (owner, layer.name):  # its earlier inputs are counted for another layer only
                raise ModelError(
                    f"{layer.name} shares its input with {earlier_owner} on some calibration windows only, so that the "
                    "inputs of the two cannot be told apart: use a method without calibration, magnitude or rtn"
                )
        self._owner[layer.name] = layer.name
        # Experts are given (tokens, in), some layers (sequences, heads, tokens, in).
        rows = inputs.unsqueeze(0) if inputs.dim() == 2 else inputs.flatten(1, -2)
        # The first token of a window has inputs many times as large as all others: with one of them in the sample, a
        # figure would be its error alone. Of an expert's tokens the places in the window are not known.
        has_places = inputs.dim() > 2 and rows.shape[1] > 1
        self._accumulate(layer.name, rows, rows[:, 1:] if has_places else rows)

    def _accumulate(self, name: str, rows: Tensor, measured: Tensor) -> None:
        if name not in self._statistics:
            self._statistics[name] = InputStatistics(
                rows.shape[-1], hessian=self._hessian, squares=self._squares, name=name
            )
            self._samples[name] = []
        self._statistics[name].add(rows)
        tokens = measured.reshape(-1, measured.shape[-1])
        # Even steps would hit the same places of every window.
        places = np.random.default_rng(len(self._samples[name])).permutation(len(tokens))[: self._sample_a_batch]
        sample = tokens[torch.from_numpy(np.sort(places)).to(tokens.device)]
        self._samples[name].append(sample.to(torch.float32))

    @staticmethod
    def check_finite(records: Iterable[InputRecord]) -> None:
        """Raise NumericalError that names a layer whose inputs were not finite, where that has not been checked yet."""
        InputStatistics.check_finite(own for record in records for own in record._statistics.values())

    def pool(self, processes: Processes, device: torch.device) -> None:
        """Become the record of all processes, each of which has recorded a part of the windows on its device.

        Raises ModelError where layers share an input in some processes only, and errors as `check_finite`.
        """
        if processes.count == 1:
            return
        records = processes.gather(self._facts())
        for facts in records:
            for name, owner in facts["owner"].items():
                if self._owner.setdefault(name, owner) != owner:
                    raise ModelError(f"{name} shares its input on some calibration windows only; run one process")
        for name in dict.fromkeys(name for facts in records for name in facts["statistics"]):
            seen = [facts["statistics"].get(name) for facts in records]
            width = next(own["width"] for own in seen if own)
            sequences, tokens, rows = (
                [own[key] if own else 0 for own in seen] for key in ("sequences", "tokens", "sampled")
            )
            if name not in self._statistics:
                self._statistics[name] = InputStatistics(width, hessian=self._hessian, squares=self._squares, name=name)
            self._statistics[name].pool(processes.add_up, sequences=sum(sequences), tokens=sum(tokens), device=device)
            sample, before = torch.zeros(sum(rows), width, device=device), sum(rows[: processes.rank])
            for piece in self._samples.get(name, []):
                sample[before : before + len(piece)] = piece
                before += len(piece)
            processes.add_up(sample)  # of which each process has rows of its own
            self._samples[name] = [sample]
        self.check_finite([self])

    def _facts(self) -> dict[str, Any]:
        """What other processes have to know of this record."""
        statistics = {
            name: {
                "width": own.width,
                "sequences": own.sequences,
                "tokens": own.tokens,
                "sampled": sum(map(len, self._samples[name])),
            }
            for name, own in self._statistics.items()
        }
        return {"owner": self._owner, "statistics": statistics}

    def owner_of(self, layer: LinearLayer) -> str:
        """The name of the layer whose statistics this layer uses; its own name when it never ran."""
        return self._owner.get(layer.name, layer.name)

    def statistics_of(self, layer: LinearLayer) -> InputStatistics | None:
        """Statistics of a layer's inputs, None when it never ran."""
        return self._statistics.get(self._owner.get(layer.name, ""))

    def sample_of(self, layer: LinearLayer) -> Tensor | None:
        """A sample of a layer's inputs (tokens, in) in float32, None when it never ran."""
        pieces = self._samples.get(self._owner.get(layer.name, ""))
        return torch.cat(pieces) if pieces else None

    def forget(self, layer: LinearLayer, still_to_come: Sequence[LinearLayer]) -> None:
        """Free a layer's statistics, the largest tensors here, unless a layer still to come shares them."""
        owner = self._owner.get(layer.name, "")
        if all(self._owner.get(other.name) != owner for other in still_to_come):
            self._statistics.pop(owner, None)
            self._samples.pop(owner, None)
