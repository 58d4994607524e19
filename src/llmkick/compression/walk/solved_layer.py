"""A layer that a recipe has compressed, and what is to be said about it; several processes hand them on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid
from llmkick.compression.kernels.layer import WeightResult
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.processes import Processes
from llmkick.compression.walk.report import LayerReport

# What experts that are solved at once take: so many matrices as wide as the inputs while their factors are made, in
# float32, and so many copies of their weights.
AT_ONCE_BYTES = 2**32
FACTOR_COPIES = 3
WEIGHT_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class SolvedLayer:
    """What a recipe made of a layer. is_dense: it was left as it is, and `result` holds its own weight."""

    result: WeightResult
    report: LayerReport
    warnings: tuple[str, ...]
    dense_bytes: int
    stored_bytes: int
    is_dense: bool

    def facts(self) -> dict[str, Any]:
        """All but the tensors, as JSON."""
        grid, codes = self.result.grid, self.result.codes
        return {
            "report": asdict(self.report),
            "warnings": self.warnings,
            "dense_bytes": self.dense_bytes,
            "stored_bytes": self.stored_bytes,
            "is_dense": self.is_dense,
            "damping": self.result.damping,
            "grid": None if grid is None else {"bits": grid.bits, "group": grid.group, "groups": grid.scale.shape[1]},
            "codes": None if codes is None else str(codes.dtype).removeprefix("torch."),
        }

    @classmethod
    def unfilled(cls, facts: Mapping[str, Any], layer: LinearLayer) -> SolvedLayer:
        """The solved layer of another process, with tensors that are yet to be filled."""
        dense, grid, codes = layer.weight, None, None
        if facts["grid"] is not None:
            bits, group, groups = (facts["grid"][key] for key in ("bits", "group", "groups"))
            scale, zero = (torch.empty(len(dense), groups, dtype=torch.float32, device=dense.device) for _ in range(2))
            grid = FittedGrid(scale=scale, zero=zero, bits=bits, group=group)
        if facts["codes"] is not None:
            codes = torch.empty(dense.shape, dtype=getattr(torch, facts["codes"]), device=dense.device)
        weight = dense if facts["is_dense"] else torch.empty(dense.shape, dtype=dense.dtype, device=dense.device)
        return cls(
            result=WeightResult(weight, facts["damping"], grid, codes),
            report=LayerReport.from_json(facts["report"]),
            warnings=tuple(facts["warnings"]),
            dense_bytes=facts["dense_bytes"],
            stored_bytes=facts["stored_bytes"],
            is_dense=facts["is_dense"],
        )

    def contiguous(self) -> SolvedLayer:
        """The same with tensors whose values can be handed out one after another."""
        weight, damping, grid, codes, _ = self.result  # a recovery is not shared out
        if grid is not None:
            scale, zero = grid.scale.contiguous(), grid.zero.contiguous()
            grid = FittedGrid(scale=scale, zero=zero, bits=grid.bits, group=grid.group)
        result = WeightResult(weight.contiguous(), damping, grid, None if codes is None else codes.contiguous())
        return SolvedLayer(**{**self.__dict__, "result": result})

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that another process needs, in a fixed order."""
        if self.is_dense:
            return
        yield self.result.weight
        if self.result.grid is not None:
            yield from (self.result.grid.scale, self.result.grid.zero)
        if self.result.codes is not None:
            yield self.result.codes


def solved_at_once(layers: Sequence[LinearLayer], places: Sequence[int]) -> Iterator[list[int]]:
    """Places of layers, in order, in groups that are solved at once: on a GPU, the experts of one parameter.

    A single expert has too few rows to keep a GPU busy. On a CPU, one after another is as fast and takes less memory.
    """
    group: list[int] = []
    for place in places:
        layer, first = layers[place], layers[group[0]] if group else None
        fits = first is not None and layer.module is first.module and layer.parameter == first.parameter
        if group and not (fits and len(group) < _most_at_once(layer)):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _most_at_once(layer: LinearLayer) -> int:
    """How many layers like this are solved at once."""
    if layer.form != "expert" or not batches_experts(layer.stored.device):
        return 1
    rows, width = layer.weight.shape
    return max(1, AT_ONCE_BYTES // (4 * (FACTOR_COPIES * width * width + WEIGHT_COPIES * rows * width)))


def batches_experts(device: torch.device) -> bool:
    """Whether several experts are solved at once on a device."""
    return device.type != "cpu"


def solvers(inputs: Sequence[object], shapes: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The process, of `count`, that solves each layer: those of equal inputs together, the work shared out evenly.

    inputs: what layers with the same statistics have in common. shapes: (out, in) of each layer.
    """
    work: dict[object, int] = {}
    for key, (rows, width) in zip(inputs, shapes, strict=True):
        # A factorisation takes about width³ / 3 products and is made once for all layers that share their inputs.
        work[key] = work.get(key, width**3 // 3) + rows * width**2
    loads, chosen = [0] * count, dict[object, int]()
    for key in sorted(work, key=lambda key: -work[key]):  # of equal ones the first comes first
        chosen[key] = loads.index(min(loads))
        loads[chosen[key]] += work[key]
    return [chosen[key] for key in inputs]


def solved_by_all(
    layers: Sequence[LinearLayer],
    owners: Sequence[int],
    own: Iterable[tuple[int, list[SolvedLayer]]],
    processes: Processes,
) -> Iterator[tuple[int, list[SolvedLayer]]]:
    """The solved layers by place, one for each recipe: this process solves its own, and all of them get all.

    owners: the process that solves each layer. own: the places of this process with its solved layers.
    """
    # Only what is contiguous can be handed out, so a copy is made before others wait for it.
    solved_here = {place: [solved.contiguous() for solved in several] for place, several in own}
    facts = {str(place): [solved.facts() for solved in several] for place, several in solved_here.items()}
    everyone = processes.gather(facts)
    for place, (layer, owner) in enumerate(zip(layers, owners, strict=True)):
        several = solved_here.pop(place, None)
        if several is None:
            several = [SolvedLayer.unfilled(each, layer) for each in everyone[owner][str(place)]]
        for each in several:
            for tensor in each.tensors():
                processes.hand_out(tensor, owner)
        yield place, several
