"""Replacing the columns of a weight one by one, while the later columns compensate for each error.

The core that SparseGPT and GPTQ share: they differ only in what replaces a column.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, nearest_point
from llmkick.compression.kernels.hessian import HessianFactor

BLOCK = 128  # the errors of so many columns are added to the columns after the block in one wide matrix product
PANEL = 32  # the errors of so many columns are added to the rest of their block in one narrow matrix product
NO_MASK = torch.empty(0, 0, dtype=torch.bool, device="cpu")
NO_NUMBER = torch.empty(0, dtype=torch.int64, device="cpu")
NO_GRIDS = (NO_NUMBER, *(torch.empty(0, 0, dtype=torch.float32, device="cpu"),) * 3)


@dataclass(frozen=True, kw_only=True)
class ColumnGrids:
    """The grid of each column: the point nearest to w is round(w / scale) clamped to low … high, times scale."""

    number: Tensor  # (columns,) int64 on the CPU, the grid of each column
    scale: Tensor  # (grids, out) float32, as low and high
    low: Tensor  # the lowest code less the zero
    high: Tensor  # the highest code less the zero

    @classmethod
    def of(cls, fitted: FittedGrid, number: Tensor) -> "ColumnGrids":
        """From fitted grids (out, grids) and the number of each column's grid (columns,)."""
        scale, zero = fitted.scale.T.contiguous(), fitted.zero.T.contiguous()
        return cls(number=number, scale=scale, low=-zero, high=fitted.top - zero)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What replaces some consecutive columns: zeroed weights are 0, the others are rounded if there are grids."""

    zeroed: Tensor | None = None  # (columns, out) bool
    grids: ColumnGrids | None = None

    def __getitem__(self, span: slice) -> "Replacement":
        """The replacement of a part of these columns, counted from the first of them."""
        zeroed, grids = self.zeroed, self.grids
        if grids is not None:
            grids = ColumnGrids(number=grids.number[span], scale=grids.scale, low=grids.low, high=grids.high)
        return Replacement(zeroed=None if zeroed is None else zeroed[span], grids=grids)


class Columns:
    """A weight during the sweep, held as Wᵀ (in, out) in the factor's order, so that a column of W is contiguous."""

    def __init__(self, weight: Tensor, factor: HessianFactor) -> None:
        """weight: (out, in) float32, which is not changed."""
        self._factor = factor
        self._dense = (weight.T if factor.order is None else weight.T[factor.order]).contiguous()
        self._values = self._dense  # copied in `sweep`, when the caller has freed the weight

    def weight(self) -> Tensor:
        """The weight with all replacements so far: (out, in)."""
        order = self._factor.order
        values = self._values if order is None else self._values[order.argsort()]
        return values.T.contiguous()

    def settled(self, start: int, stop: int) -> Tensor:
        """The optimal values of these columns, given the columns before them: (stop − start, out).

        Valid when all columns before `start` are replaced, and none from it on.
        """
        dense = self._dense[start:stop]
        return torch.addmm(dense, self._factor.inverse_within(start, stop), self._values[start:stop] - dense)

    def sweep(self, choose: Callable[[int, int], Replacement], *, group: int = 1) -> None:
        """Replace all columns in order. `choose(start, stop)` gives the replacement of each run of `group` columns.

        It is called when all columns before `start` are replaced; with groups of 1 for BLOCK columns at a time.

        The error of a replaced column is e = q − w, its new value less its original value. Column j is replaced when
        it is w_j − Σ e_i M_ij over all columns i before it. These sums are vector products within a run, narrow matrix
        products within a block and wide matrix products beyond it.
        """
        self._values = values = self._dense.clone()
        unit = self._factor.unit
        run_width = group if 1 < group <= PANEL else PANEL
        errors = torch.empty_like(values[:BLOCK])
        replacer = Replacer(values, self._dense, errors, unit)
        for start, stop in spans(0, len(values), BLOCK, group):
            replacer.first = start
            for first, last in spans(start, stop, PANEL, group):
                for a, b in spans(first, last, run_width, group):
                    if a == start if group == 1 else a % group == 0:
                        replacer.choose(choose(a, stop if group == 1 else min(a + group, len(values))), a)
                    replacer.replace(a, b)
                    _spread(values[b:last], unit[a:b, b:last], errors[a - start : b - start])
                _spread(values[last:stop], unit[first:last, last:stop], errors[first - start : last - start])
            _spread(values[stop:], unit[start:stop, stop:], errors[: stop - start])


def _spread(values: Tensor, unit: Tensor, errors: Tensor) -> None:
    """Compensate errors (replaced, out) in later columns (later, out), in place; unit: (replaced, later) of M."""
    if len(values):
        values.addmm_(unit.T, errors, alpha=-1)


def spans(start: int, stop: int, width: int, group: int) -> list[tuple[int, int]]:
    """start … stop in pieces of at most `width` that cut no group; a group wider than that starts a new piece."""
    whole = width // group * group or group
    return [
        (piece, min(piece + width, first + whole, stop))
        for first in range(start, stop, whole)
        for piece in range(first, min(first + whole, stop), width)
    ]


class Replacer:
    """Replaces the columns of a block run by run; each error is compensated in the later columns of its run.

    values, dense: (columns, out), the weight at work and the original weight. unit: (columns, columns), M. errors:
    (columns of a block, out), the errors of the columns from `first` on, which are filled in.
    """

    def __init__(self, values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor) -> None:
        self.first = 0
        self._matrices = values, dense, errors, unit
        self._is_compiled = is_compiled_for(values.device)
        if self._is_compiled:
            self._arrays = [matrix.numpy() for matrix in self._matrices]

    def choose(self, replacement: Replacement, start: int) -> None:
        """Set the replacement of the columns from `start` on."""
        self._replacement, self._start = replacement, start
        if self._is_compiled:
            zeroed = NO_MASK if replacement.zeroed is None else replacement.zeroed
            grids = replacement.grids
            rounding = NO_GRIDS if grids is None else (grids.number, grids.scale, grids.low, grids.high)
            self._rule = [each.numpy() for each in (zeroed, *rounding)]

    def replace(self, start: int, stop: int) -> None:
        """Replace these columns, one after another."""
        if self._is_compiled:
            # Imported with the first weight, because the import loads the compiler.
            from llmkick.compression.kernels.compiled import replace_columns

            replace_columns(*self._arrays, *self._rule, start, stop, self.first, self._start)
            return
        values, dense, errors, unit = self._matrices
        run, replacement = slice(start, stop), self._replacement[start - self._start : stop - self._start]
        run_errors = errors[start - self.first : stop - self.first]
        replace_plainly(values[run], dense[run], run_errors, unit[run, run], replacement)


def is_compiled_for(device: torch.device) -> bool:
    """Whether the loop over columns runs as compiled code on the device."""
    return device.type == "cpu"


def replace_plainly(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, replacement: Replacement) -> None:
    """Replace a few columns one by one: (columns, out) in place, on any device."""
    for column in range(len(values)):
        new = values[column]
        if replacement.zeroed is not None:
            new = new.masked_fill(replacement.zeroed[column], 0)
        if replacement.grids is not None:
            number, grids = int(replacement.grids.number[column]), replacement.grids
            new = nearest_point(new, grids.scale[number], grids.low[number], grids.high[number])
        values[column] = new
        errors[column] = new - dense[column]
        values[column + 1 :].addr_(unit[column, column + 1 :], errors[column], alpha=-1)
