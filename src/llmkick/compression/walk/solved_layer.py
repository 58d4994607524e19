"""A layer that a recipe has compressed, and what is to be said about it; several processes hand them on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid
from llmkick.compression.kernels.layer import WeightResult
from llmkick.compression.walk.layer_notes import LayerNote, UnreadNote, read_notes
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.processes import Processes
from llmkick.compression.walk.report import LayerReport

# What experts that are solved at once take: so many matrices as wide as the inputs while their factors are made, in
# float32, and so many copies of their weights.
AT_ONCE_BYTES = 2**32
FACTOR_COPIES = 3
WEIGHT_COPIES = 4


@dataclass(kw_only=True)
class SolvedLayer:
    """What a recipe made of a layer. is_dense: it was left as it is, and `result` holds its own weight."""

    result: WeightResult
    note: LayerNote | UnreadNote
    is_dense: bool

    def facts(self, note: LayerNote) -> dict[str, Any]:
        """All but the tensors, as JSON. note: that of this layer, read."""
        grid, codes = self.result.grid, self.result.codes
        return {
            "report": asdict(note.report),
            "warnings": note.warnings,
            "dense_bytes": note.dense_bytes,
            "stored_bytes": note.stored_bytes,
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
        note = LayerNote(
            report=LayerReport.from_json(facts["report"]),
            warnings=tuple(facts["warnings"]),
            dense_bytes=facts["dense_bytes"],
            stored_bytes=facts["stored_bytes"],
        )
        result = WeightResult(weight, facts["damping"], grid, codes)
        return cls(result=result, note=note, is_dense=facts["is_dense"])

    def contiguous(self) -> SolvedLayer:
        """The same with tensors whose values can be handed out one after another."""
        weight, damping, grid, codes, _ = self.result  # a recovery is not shared out
        if grid is not None:
            scale, zero = grid.scale.contiguous(), grid.zero.contiguous()
            grid = FittedGrid(scale=scale, zero=zero, bits=grid.bits, group=grid.group)
        result = WeightResult(weight.contiguous(), damping, grid, None if codes is None else codes.contiguous())
        return SolvedLayer(result=result, note=self.note, is_dense=self.is_dense)

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
    """Places of layers in groups that are solved at once: on a GPU, layers of equal shape of the experts of a mixture.

    A single expert has too few rows to keep a GPU busy. On a CPU, one after another is as fast and takes less memory,
    and so are all places in order. Of experts that are modules of their own, as many as fit are solved layer by layer,
    before the next ones: then the statistics that layers of an expert share are freed soon.
    """
    for _, mixture in groupby(places, key=lambda place: _mixture(layers[place]) or place):
        together = list(mixture)
        most = min(_most_at_once(layers[place]) for place in together)
        groups: dict[tuple[int, object], list[int]] = {}
        before: Counter[object] = Counter()
        for place in together:
            kind = _kind(layers[place])
            groups.setdefault((before[kind] // most, kind), []).append(place)
            before[kind] += 1
        for key in sorted(groups, key=lambda key: key[0]):  # of equal ones the first comes first
            yield groups[key]


def _mixture(layer: LinearLayer) -> object:
    """What the layers of the experts of a mixture have in common; None for any other layer."""
    if layer.form == "expert":
        return id(layer.module), layer.parameter
    return layer.role.partition("*")[0] or None


def _kind(layer: LinearLayer) -> object:
    """What layers of a mixture have in common that are solved at once."""
    stored = layer.stored
    return layer.role, layer.form, layer.weight.shape, stored.dtype, stored.device, bool(layer.twins)


def _most_at_once(layer: LinearLayer) -> int:
    """How many layers like this are solved at once."""
    if not (layer.is_of_expert and batches_experts(layer.stored.device)):
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
    notes = iter(read_notes([solved.note for several in solved_here.values() for solved in several]))
    facts = {str(place): [solved.facts(next(notes)) for solved in several] for place, several in solved_here.items()}
    everyone = processes.gather(facts)
    for place, (layer, owner) in enumerate(zip(layers, owners, strict=True)):
        several = solved_here.pop(place, None)
        if several is None:
            several = [SolvedLayer.unfilled(each, layer) for each in everyone[owner][str(place)]]
        for each in several:
            for tensor in each.tensors():
                processes.hand_out(tensor, owner)
        yield place, several
