"""Integer grids: where their points lie, and the nearest one to each weight.

A weight w is stored as a code, an integer from 0 to 2^bits − 1, and read back as scale × (code − zero).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.compression.kernels.patterns import Grid


@dataclass(frozen=True, kw_only=True)
class FittedGrid:
    """Grids fitted to groups of `group` inputs of each row of a weight (out, in); the last group may be smaller."""

    scale: Tensor  # (out, groups) float32, distance between two points
    zero: Tensor  # (out, groups) float32 of whole numbers, the code that stands for 0
    bits: int
    group: int  # inputs that share a grid: the width of the weight where there are no groups

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1


def fit_grid(weight: Tensor, grid: Grid) -> FittedGrid:
    """Min-max grids of a weight, as in GPTQ (arXiv 2210.17323) without its search for a smaller range.

    (out, in) → scales and zeros (out, groups); every grid holds an exact 0. A symmetric grid spans ± the
    largest magnitude and puts 0 at code 2^(bits − 1). As in the original, a symmetric row without negative
    weights gets half that step, which clips the upper half of its range.
    """
    group = grid.group_size or weight.shape[1]
    # Padding with 0 changes no range, because every range contains 0.
    groups = _in_groups(weight, group)
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    top = (1 << grid.bits) - 1
    if grid.symmetric:
        high = torch.maximum(low.abs(), high)
        low = torch.where(low < 0, -high, low)
    # A row of zeros has no range, and in a row of denormals the step underflows: any grid will do for such rows.
    flat = (high - low) / top < torch.finfo(torch.float32).tiny
    low, high = low.masked_fill(flat, -1), high.masked_fill(flat, 1)
    scale = (high - low) / top
    zero = torch.full_like(scale, (top + 1) / 2) if grid.symmetric else torch.round(-low / scale)
    return FittedGrid(scale=scale, zero=zero, bits=grid.bits, group=group)


def _in_groups(weight: Tensor, group: int) -> Tensor:
    """(out, in) → (out, groups, group) float32, the last group padded with 0."""
    return in_groups(weight.float(), group)


def in_groups(weight: Tensor, group: int) -> Tensor:
    """(out, in) → (out, groups, group) in the same dtype, the last group padded with 0."""
    missing = -weight.shape[1] % group
    # F.pad copies even if there is nothing to pad.
    padded = F.pad(weight, (0, missing)) if missing else weight
    return padded.reshape(weight.shape[0], -1, group)


def _in_rows(groups: Tensor, columns: int) -> Tensor:
    """Undo `_in_groups`: (out, groups, group) → (out, in)."""
    return groups.reshape(groups.shape[0], -1)[:, :columns]


def nearest_point(values: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The grid point nearest to each value: float32 tensors of shapes that broadcast → the same.

    low and high are the lowest and the highest code less the zero point: −zero and top − zero. Whole numbers of this
    size are exact in float32.
    """
    # Adding 0 turns −0 into 0, which is what decoding a code gives.
    return (values / scale).round_().clamp_(low, high).add_(0).mul_(scale)


def round_to_grid(weight: Tensor, fitted: FittedGrid) -> Tensor:
    """The grid point nearest to each weight, float32: (out, in) → same."""
    groups = _in_groups(weight, fitted.group)
    zero = fitted.zero[..., None]
    points = nearest_point(groups, fitted.scale[..., None], -zero, fitted.top - zero)
    return _in_rows(points, weight.shape[1])


def encode(weight: Tensor, fitted: FittedGrid) -> Tensor:
    """The code of the point nearest to each weight: (out, in) → same, uint8, or int32 above 8 bits.

    A weight that lies on the grid gets the code of its point, also after a cast to float16. After a cast to bfloat16,
    whose precision distinguishes 128 points only, it may get the code of a neighbour: encode before casting.
    """
    groups = _in_groups(weight, fitted.group)
    codes = (groups / fitted.scale[..., None]).round_().add_(fitted.zero[..., None]).clamp_(0, fitted.top)
    return _in_rows(codes, weight.shape[1]).to(torch.uint8 if fitted.bits <= 8 else torch.int32)


def decode(codes: Tensor, fitted: FittedGrid) -> Tensor:
    """The weights that the codes stand for, float32: (out, in) → same."""
    groups = _in_groups(codes, fitted.group)
    return _in_rows((groups - fitted.zero[..., None]).mul_(fitted.scale[..., None]), codes.shape[1])
