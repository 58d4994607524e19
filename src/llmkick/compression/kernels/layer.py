"""What a kernel is given, one linear layer, and what it returns. No torch is imported here, so that this is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from llmkick.compression.kernels.grid import FittedGrid
    from llmkick.compression.kernels.hessian import InputStatistics
    from llmkick.models.low_rank import Adapter


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One linear layer as a kernel gets it.

    weight: (out, in), never to be changed in place. inputs: statistics of the layer's inputs on calibration text,
    empty for a recipe that needs none. zeroed: (out, in) bool, the weights that an earlier step of a chain pruned:
    they are 0 and must stay 0. name: the layer's name, the same in every run, for messages and for seeds.
    """

    weight: Tensor
    inputs: InputStatistics
    zeroed: Tensor | None = None
    name: str = "weight"


class LayerRecovery(NamedTuple):
    """What a recovery did to one layer: the relative errors of its output before and after, and its seconds.

    adapter, base: what is kept in place of the weight, where the recovery is kept beside it: weight = base + b·a.
    """

    error_before: float | None
    error_after: float | None
    seconds: float
    adapter: Adapter | None = None
    base: Tensor | None = None


class WeightResult(NamedTuple):
    """A compressed weight (out, in), in the dtype and on the device of the original.

    damping: share of the Hessian's mean diagonal that was added to it; None where no Hessian was used. grid and codes:
    what a compact form stores; None where nothing was rounded. The codes are those of the weight in float32: in
    bfloat16 two neighbouring points of an 8-bit grid can become one. recovery: set by llmkick for a recovered recipe.
    """

    weight: Tensor
    damping: float | None = None
    grid: FittedGrid | None = None
    codes: Tensor | None = None
    recovery: LayerRecovery | None = None
