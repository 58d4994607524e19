"""A linear layer inside a block, in any form in which transformers stores one, and the replacement of its weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from llmkick.models.checkpoints.packed import Place


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One weight matrix inside a block: the module and the parameter that store it, and in which form.

    form: "linear" is stored as (out, in), "conv1d" as (in, out). An "expert" is a slice of a parameter that holds the
    weights of many: (experts, out, in), or (experts · rows, columns) where `rows` are those of one expert. `transposed`
    experts are stored as (in, out). twins: layers of later blocks that share this weight. role: of a layer of an expert
    that is a module of its own, its name in the block with * for the number of the expert; empty for any other layer.
    """

    name: str
    module: nn.Module
    form: Literal["linear", "conv1d", "expert"]
    parameter: str = "weight"
    expert: int = 0
    transposed: bool = False
    rows: int | None = None
    twins: tuple[LinearLayer, ...] = ()
    role: str = ""

    @property
    def is_of_expert(self) -> bool:
        """Whether the layer is one of many of its kind, of which each sees some of the tokens."""
        return self.form == "expert" or bool(self.role)

    @property
    def stored(self) -> Tensor:
        """The whole parameter."""
        stored: Tensor = getattr(self.module, self.parameter)
        return stored

    @property
    def weight(self) -> Tensor:
        """The weight as (out, in); a view of the stored parameter."""
        return self._oriented(self._slice(self.stored))

    @property
    def place(self) -> Place:
        """Where the weight is stored in the network's state dict."""
        if self.form == "expert":
            return Place(
                parameter=self.name.rpartition(".")[0],
                transposed=self.transposed,
                expert=self.expert,
                flat=self.rows is not None,
            )
        return Place(parameter=f"{self.name}.{self.parameter}", transposed=self.form == "conv1d")

    def put_into(self, stored: Tensor, weight: Tensor) -> None:
        """Write a weight (out, in) into its slice of a parameter that no other network shares."""
        self._slice(stored).copy_(self._oriented(weight))

    def _slice(self, stored: Tensor) -> Tensor:
        if self.form != "expert":
            return stored
        if self.rows is None:
            return stored[self.expert]
        return stored[self.expert * self.rows : (self.expert + 1) * self.rows]

    def _oriented(self, matrix: Tensor) -> Tensor:
        """(out, in) of the stored matrix, or the stored form of (out, in): a transposition is its own inverse."""
        return matrix.t() if self.form == "conv1d" or self.transposed else matrix


def replace_weights(weights: Iterable[tuple[LinearLayer, Tensor]]) -> None:
    """Store new weights (out, in), in twins too. The old tensors are not changed: other networks may share them."""
    copied: set[tuple[int, str]] = set()  # parameters of experts that are copies already
    for layer, weight in weights:
        stored = layer.stored
        key = id(layer.module), layer.parameter
        if layer.form == "expert" and key in copied:
            layer.put_into(stored.data, weight.to(stored.device))
            continue
        copied.add(key)
        if layer.form == "expert":
            new = stored.detach().clone()
            layer.put_into(new, weight.to(stored.device))
        else:
            new = (weight.t() if layer.form == "conv1d" else weight).to(stored.device, stored.dtype).contiguous()
        parameter = nn.Parameter(new, requires_grad=False)
        put_parameter(layer.module, layer.parameter, parameter)
        for twin in layer.twins:
            if stored.is_meta or not twin.stored.is_meta:  # a block that is not in memory reads its weights when opened
                put_parameter(twin.module, twin.parameter, parameter)


def put_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter of a module.

    Not by assignment: while any thread builds a network on the meta device, every parameter that is assigned in this
    process, whatever its network, is moved there.
    """
    module._parameters[name] = parameter
