"""A weight whose columns are replaced one by one, those that follow making up for each error.

The core that SparseGPT and GPTQ share: they differ only in what a column is replaced by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, nearest_point
from llmkick.compression.kernels.hessian import HessianFactor

BLOCK = 128  # columns whose errors reach the columns behind the block together, as one wide matrix product
PANEL = 32  # columns whose errors reach the rest of their block together, as one narrow matrix product
NO_MASK = torch.empty(0, 0, dtype=torch.bool, device="cpu")
NO_NUMBER = torch.empty(0, dtype=torch.int64, device="cpu")
NO_GRIDS = (NO_NUMBER, *(torch.empty(0, 0, dtype=torch.float32, device="cpu"),) * 3)


@dataclass(frozen=True, kw_only=True)
class ColumnGrids:
    """Grids by column: the point nearest to w is round(w / scale) held between low and high, times scale."""

    number: Tensor  # (columns,) int64 on the CPU, the grid of each column
    scale: Tensor  # (grids, out) float32, as the others
    low: Tensor  # the lowest code less the zero
    high: Tensor  # the highest code less the zero

    @classmethod
    def of(cls, fitted: FittedGrid, number: Tensor) -> "ColumnGrids":
        """The fitted grids (out, grids), with the number of each column's."""
        scale, zero = fitted.scale.T.contiguous(), fitted.zero.T.contiguous()
        return cls(number=number, scale=scale, low=-zero, high=fitted.top - zero)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What becomes of some consecutive columns: some weights are zeroed, the others rounded or left as they are."""

    zeroed: Tensor | None = None  # (columns, out) bool
    grids: ColumnGrids | None = None

    def __getitem__(self, span: slice) -> "Replacement":
        """Of some of these columns, counted from the first of them."""
        zeroed, grids = self.zeroed, self.grids
        if grids is not None:
            grids = ColumnGrids(number=grids.number[span], scale=grids.scale, low=grids.low, high=grids.high)
        return Replacement(zeroed=None if zeroed is None else zeroed[span], grids=grids)


class Columns:
    """Wᵀ (in, out), its inputs in the factor's order, so that a column of W is contiguous."""

    def __init__(self, weight: Tensor, factor: HessianFactor) -> None:
        """Of a float32 weight (out, in), which stays as it is."""
        self._factor = factor
        self._dense = (weight.T if factor.order is None else weight.T[factor.order]).contiguous()
        self._values = self._dense  # until the sweep, before which the caller may let go of the weight

    def weight(self) -> Tensor:
        """The weight as it now is: (out, in)."""
        order = self._factor.order
        values = self._values if order is None else self._values[order.argsort()]
        return values.T.contiguous()

    def settled(self, start: int, stop: int) -> Tensor:
        """The best these columns can be, given all before them: (stop − start, out); for when `start` has its turn."""
        dense = self._dense[start:stop]
        return torch.addmm(dense, self._factor.inverse_within(start, stop), self._values[start:stop] - dense)

    def sweep(self, choose: Callable[[int, int], Replacement], *, group: int = 1) -> None:
        """Replace all columns in order, as `choose(start, stop)` says for each run of `group` columns in its turn.

        With groups of 1 it is asked for a block of BLOCK columns at once.

        The error of a replaced column is its value less its original, e = q − w, and a column's turn comes with
        w − Σ e_i M_ij over those before it. What is added within a panel, a block and behind the block are vector,
        narrow and wide matrix products.
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
    """Have later columns (later, out) make up for errors (replaced, out), in place; unit: (replaced, later)."""
    if len(values):
        values.addmm_(unit.T, errors, alpha=-1)


def spans(start: int, stop: int, width: int, group: int) -> list[tuple[int, int]]:
    """start … stop in pieces of at most `width`, cutting no group; wider groups start with a piece."""
    whole = width // group * group or group
    return [
        (piece, min(piece + width, first + whole, stop))
        for first in range(start, stop, whole)
        for piece in range(first, min(first + whole, stop), width)
    ]


class Replacer:
    """Replaces the columns of a block run by run, each error spread over those after it in the run.

    values, dense: (columns, out), the weight at work and the original one; unit: (columns, columns) of M. errors:
    (columns of a block, out), filled with what they differ by from column `first` on.
    """

    def __init__(self, values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor) -> None:
        self.first = 0
        self._matrices = values, dense, errors, unit
        self._is_compiled = is_compiled_for(values.device)
        if self._is_compiled:
            self._arrays = [matrix.numpy() for matrix in self._matrices]

    def choose(self, what: Replacement, start: int) -> None:
        """What becomes of the columns from `start` on."""
        self._what, self._start = what, start
        if self._is_compiled:
            zeroed = NO_MASK if what.zeroed is None else what.zeroed
            grids = what.grids
            rounding = NO_GRIDS if grids is None else (grids.number, grids.scale, grids.low, grids.high)
            self._rule = [each.numpy() for each in (zeroed, *rounding)]

    def replace(self, start: int, stop: int) -> None:
        """Replace these columns, one after another."""
        if self._is_compiled:
            # Loaded with the first weight: the compiler takes half a second.
            from llmkick.compression.kernels.compiled import replace_columns

            replace_columns(*self._arrays, *self._rule, start, stop, self.first, self._start)
            return
        values, dense, errors, unit = self._matrices
        run, what = slice(start, stop), self._what[start - self._start : stop - self._start]
        of_errors = errors[start - self.first : stop - self.first]
        replace_plainly(values[run], dense[run], of_errors, unit[run, run], what)


def is_compiled_for(device: torch.device) -> bool:
    """Whether the loop over columns runs as machine code there."""
    return device.type == "cpu"


def replace_plainly(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, what: Replacement) -> None:
    """Replace a few columns one by one: (columns, out) in place, on any device."""
    for column in range(len(values)):
        new = values[column]
        if what.zeroed is not None:
            new = new.masked_fill(what.zeroed[column], 0)
        if what.grids is not None:
            number, grids = int(what.grids.number[column]), what.grids
            new = nearest_point(new, grids.scale[number], grids.low[number], grids.high[number])
        values[column] = new
        errors[column] = new - dense[column]
        values[column + 1 :].addr_(unit[column, column + 1 :], errors[column], alpha=-1)
