"""What replaces the columns of a weight, and the plain loop that replaces them: the definition of every faster one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, nearest_point
from llmkick.compression.kernels.masks import zero_lowest_per_row


@dataclass(frozen=True, kw_only=True)
class ColumnGrids:
    """The grid of each column: the point nearest to w is round(w / scale) clamped to low … high, times scale."""

    number: Tensor  # (columns,) int64, the grid of each column; of several weights also (weights, columns)
    scale: Tensor  # (…, grids, out) float32, as low and high
    low: Tensor  # the lowest code less the zero
    high: Tensor  # the highest code less the zero

    @classmethod
    def of(cls, fitted: FittedGrid, number: Tensor) -> ColumnGrids:
        """From fitted grids (…, out, grids) and the number of each column's grid."""
        scale, zero = fitted.scale.mT.contiguous(), fitted.zero.mT.contiguous()
        return cls(number=number, scale=scale, low=-zero, high=fitted.top - zero)

    def __getitem__(self, span: slice) -> ColumnGrids:
        return replace(self, number=self.number[..., span])

    def of_columns(self, values: Tensor) -> Tensor:
        """What belongs to each column of `scale`, `low` or `high`: (…, grids, out) → (…, columns, out)."""
        if self.number.dim() == 1:
            return values.index_select(-2, self.number)
        return values.take_along_dim(self.number[..., None], dim=-2)


@dataclass(frozen=True, kw_only=True)
class LowestOfGroups:
    """Of each `group` consecutive columns the `count` weights of a row with the lowest |w| · size become 0.

    w is the value that is optimal given the columns before the group.
    """

    count: int
    group: int
    size: Tensor  # (…, columns) float32

    def __getitem__(self, span: slice) -> LowestOfGroups:
        return replace(self, size=self.size[..., span])

    def zeroed(self, settled: Tensor) -> Tensor:
        """The mask of one group: its optimal values (…, columns, out), which are overwritten → the same shape."""
        scores = settled.abs_().mul_(self.size[..., None]).mT
        return zero_lowest_per_row(scores.flatten(0, -2), self.count).view(scores.shape).mT.contiguous()


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What replaces some consecutive columns: zeroed weights are 0, the others are rounded if there are grids.

    Either a mask says which weights are zeroed, or a rule for each group of columns; the first column begins a group.
    """

    zeroed: Tensor | None = None  # (…, columns, out) bool
    lowest: LowestOfGroups | None = None
    grids: ColumnGrids | None = None

    def part(self, start: int, stop: int) -> Replacement:
        """The replacement of a part of these columns, counted from the first of them."""
        span = slice(start, stop)
        return Replacement(
            zeroed=None if self.zeroed is None else self.zeroed[..., span, :],
            lowest=None if self.lowest is None else self.lowest[span],
            grids=None if self.grids is None else self.grids[span],
        )


def replace_plainly(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, replacement: Replacement) -> None:
    """Replace a few columns one by one: (…, columns, out) in place, of one weight or of several, on any device.

    unit: (…, columns, columns) of M. No operation of a GPU waits for another, and each product and sum is rounded on
    its own, so that the result does not depend on the device.
    """
    zeroed, lowest, grids = replacement.zeroed, replacement.lowest, replacement.grids
    if grids is not None:
        scale, low, high = (grids.of_columns(each) for each in (grids.scale, grids.low, grids.high))
    for column in range(values.shape[-2]):
        new = values[..., column, :]
        if lowest is not None:
            place = column % lowest.group
            if place == 0:
                group = slice(column, column + lowest.group)
                settled = _settled(values[..., group, :], dense[..., group, :], unit[..., group, group])
                chosen = lowest[group].zeroed(settled)
            new = new.masked_fill(chosen[..., place, :], 0)
        if zeroed is not None:
            new = new.masked_fill(zeroed[..., column, :], 0)
        if grids is not None:
            new = nearest_point(new, scale[..., column, :], low[..., column, :], high[..., column, :])
        values[..., column, :] = new
        errors[..., column, :] = new - dense[..., column, :]
        _spread(values[..., column + 1 :, :], unit[..., column, column + 1 :], errors[..., column, :])


def _settled(values: Tensor, dense: Tensor, unit: Tensor) -> Tensor:
    """The optimal values of these columns, given the columns before them, of which they hold the errors: as a copy."""
    settled = values.clone()
    for column in range(settled.shape[-2]):
        error = settled[..., column, :] - dense[..., column, :]
        _spread(settled[..., column + 1 :, :], unit[..., column, column + 1 :], error)
    return settled


def _spread(later: Tensor, shares: Tensor, error: Tensor) -> None:
    """Compensate one error (…, out) in later columns (…, later, out), in place; shares: (…, later) of M."""
    later.sub_(shares[..., None] * error[..., None, :])
