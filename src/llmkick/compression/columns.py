"""A weight whose columns are replaced one by one, those that follow making up for each error.

The core that SparseGPT and GPTQ share: they differ only in what a column is replaced by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.grid import FittedGrid, nearest_point
from llmkick.compression.hessian import HessianFactor

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
        self._unit, self._order = factor.unit, factor.order
        self._dense = weight.T if factor.order is None else weight.T[factor.order]
        self._values = self._dense.clone(memory_format=torch.contiguous_format)
        self._block = 0, self._values[:0]  # the first column of the block at work, and its original values

    def weight(self) -> Tensor:
        """The weight as it now is: (out, in)."""
        values = self._values if self._order is None else self._values[self._order.argsort()]
        return values.T.contiguous()

    def settled(self, start: int, stop: int) -> Tensor:
        """The best these columns can be, given all before them: (stop − start, out); for when `start` has its turn."""
        triangle = self._unit[start:stop, start:stop].T
        identity = torch.eye(stop - start, dtype=triangle.dtype, device=triangle.device)
        inverse = torch.linalg.solve_triangular(triangle, identity, upper=False, unitriangular=True)
        first, block = self._block
        within = stop <= first + len(block)  # else a group wider than its block
        dense = block[start - first : stop - first] if within else self._dense[start:stop]
        return torch.addmm(dense, inverse, self._values[start:stop] - dense)

    def sweep(self, choose: Callable[[int, int], Replacement], *, group: int = 1) -> None:
        """Replace all columns in order, as `choose(start, stop)` says for each run of `group` columns in its turn.

        With groups of 1 it is asked for a block of BLOCK columns at once.

        The error of a replaced column is its value less its original, e = q − w, and a column's turn comes with
        w − Σ e_i M_ij over those before it. What is added within a panel, a block and behind the block are vector,
        narrow and wide matrix products.
        """
        values, unit = self._values, self._unit
        run_width = group if 1 < group <= PANEL else PANEL
        chosen, chosen_at = Replacement(), 0
        for start, stop in spans(0, len(values), BLOCK, group):
            dense = self._dense[start:stop].contiguous()
            errors = torch.empty_like(dense)
            self._block = start, dense
            for first, last in spans(start, stop, PANEL, group):
                for a, b in spans(first, last, run_width, group):
                    if a == start if group == 1 else a % group == 0:
                        chosen, chosen_at = choose(a, stop if group == 1 else min(a + group, len(values))), a
                    run = slice(a - start, b - start)
                    what = chosen[a - chosen_at : b - chosen_at]
                    replace_run(values[a:b], dense[run], errors[run], unit[a:b, a:b], what)
                    values[b:last].addmm_(unit[a:b, b:last].T, errors[run], alpha=-1)
                panel = slice(first - start, last - start)
                values[last:stop].addmm_(unit[first:last, last:stop].T, errors[panel], alpha=-1)
            values[stop:].addmm_(unit[start:stop, stop:].T, errors, alpha=-1)


def spans(start: int, stop: int, width: int, group: int) -> list[tuple[int, int]]:
    """start … stop in pieces of at most `width`, cutting no group; wider groups start with a piece."""
    whole = width // group * group or group
    return [
        (piece, min(piece + width, first + whole, stop))
        for first in range(start, stop, whole)
        for piece in range(first, min(first + whole, stop), width)
    ]


def replace_run(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, what: Replacement) -> None:
    """Replace a few columns one by one, each error spread over those after it: (columns, out), in place.

    dense: the original values; errors: filled with what they differ by; unit: (columns, columns) of M.
    """
    if values.device.type != "cpu":
        replace_plainly(values, dense, errors, unit, what)
        return
    # Loaded with the first weight: the compiler takes half a second.
    from llmkick.compression.compiled import replace_columns

    grids = what.grids
    zeroed = NO_MASK if what.zeroed is None else what.zeroed
    rounding = NO_GRIDS if grids is None else (grids.number, grids.scale, grids.low, grids.high)
    replace_columns(*(each.numpy() for each in (values, dense, errors, unit, zeroed, *rounding)))


def replace_plainly(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, what: Replacement) -> None:
    """As `replace_run`, on any device."""
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
