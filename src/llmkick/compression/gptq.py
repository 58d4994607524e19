"""GPTQ (arXiv 2210.17323): round the columns one by one; those that follow make up for each error.

`sweep` is the core that SparseGPT shares: both differ only in what a column is replaced by.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.grid import FittedGrid, fit_grid, nearest_point
from llmkick.compression.hessian import InverseFactor
from llmkick.compression.methods import Layer, WeightResult
from llmkick.compression.recipe import GPTQ, Grid

BLOCK = 128  # columns whose errors reach the columns behind the block together, as one matrix product
PANEL = 32  # columns whose errors reach the rest of their block together


def gptq(
    weight: Tensor,
    factor: InverseFactor,
    grid: Grid,
    *,
    static_groups: bool = False,
    zeroed: Tensor | None = None,
) -> tuple[Tensor, FittedGrid]:
    """Round a weight to a grid with error compensation: (out, in) → float32 (out, in), and the grid.

    Groups get their grid when their first column is reached, from the weights as updated until then, or
    beforehand if `static_groups` or if `factor.order` scatters them. Weights under `zeroed` (out, in) become
    exactly 0, and those that follow make up for that as for a rounding error.
    """
    columns = weight.shape[1]
    group = grid.group_size or columns
    alive = weight.float().masked_fill(factor.dead, 0)
    fitted = fit_beforehand(weight, alive, grid)
    scale, zero = fitted.scale.T.contiguous(), fitted.zero.T.contiguous()  # (groups, out)
    fit_on_the_way = grid.group_size is not None and not static_groups and factor.order is None
    row_grid = replace(grid, group_size=None)
    work = to_columns(alive, factor)
    pruned = None if zeroed is None else to_columns(zeroed, factor)
    position = range(columns) if factor.order is None else factor.order.tolist()

    low, high = -zero, fitted.top - zero
    scales, lows, highs = fast_rows(scale), fast_rows(low), fast_rows(high)
    removed = None if pruned is None else fast_rows(pruned)

    def rounded(column: int, values: Any) -> Any:
        number = position[column] // group
        if fit_on_the_way and column % group == 0:
            fresh = fit_grid(work[column : column + group].T, row_grid)
            scale[number], zero[number] = fresh.scale[:, 0], fresh.zero[:, 0]
            low[number], high[number] = -zero[number], fitted.top - zero[number]
        points = nearest_point(values, scales[number], lows[number], highs[number])
        if removed is not None:
            points[removed[column]] = 0
        return points

    ahead = group if fit_on_the_way else 1
    sweep(work, factor.upper, blocks(columns, ahead), rounded, ahead=ahead)
    return from_columns(work, factor), replace(fitted, scale=scale.T, zero=zero.T)


def sweep(
    work: Tensor,
    upper: Tensor,
    bounds: Iterable[tuple[int, int]],
    replacement: Callable[[int, Any], Any],
    *,
    ahead: int = 1,
) -> None:
    """Replace the columns of a weight one by one, spreading each error over the columns that follow.

    work: Wᵀ (in, out), so that a column is contiguous; changed in place. upper: (in, in), see InverseFactor.
    replacement(j, values) → new values of column j (out,) given its current ones, both as `fast_rows` gives them.
    It may read rows of `work` from j to the end of j's run of `ahead` columns, counted from 0, when j starts one,
    and all of `work` when j starts a block: there all errors so far are accounted for.

    A column takes the errors of its panel of about PANEL columns when its turn comes; the rest of the block takes them
    when the panel is done, and what is behind the block when that is: vector, narrow and wide matrix products.
    """
    rows, across, sizes = fast_rows(work), fast_rows(upper), fast_rows(upper.diagonal().contiguous())
    for start, stop in bounds:
        errors = torch.empty_like(work[start:stop])
        error_rows = fast_rows(errors)
        width = ahead * max(1, PANEL // ahead)
        for first in range(start, stop, width):
            last = min(first + width, stop)
            for column in range(first, last):
                run = column - (column - first) % ahead
                # A run's first column brings all of it up to date with the columns before the run.
                since, end = (first, min(run + ahead, last)) if column == run else (run, column + 1)
                if since < column:
                    rows[column:end] -= across[since:column, column:end].T @ error_rows[since - start : column - start]
                values = replacement(column, rows[column])
                error_rows[column - start] = (rows[column] - values) / sizes[column]
                rows[column] = values
            panel = slice(first - start, last - start)
            work[last:stop].addmm_(upper[first:last, last:stop].T, errors[panel], alpha=-1)
        work[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)


def fast_rows(tensor: Tensor) -> Any:
    """The tensor's memory in the form in which small operations cost least: NumPy's on the CPU, else the tensor.

    A column is a vector of a few hundred numbers, on which torch spends several times longer deciding what to do
    than doing it.
    """
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def blocks(columns: int, group: int) -> list[tuple[int, int]]:
    """(start, stop) of blocks of at most BLOCK columns, cutting no group; wider groups start with a block."""
    width = BLOCK // group * group or group
    return [
        (start, min(start + BLOCK, first + width, columns))
        for first in range(0, columns, width)
        for start in range(first, min(first + width, columns), BLOCK)
    ]


def fit_beforehand(weight: Tensor, alive: Tensor, grid: Grid) -> FittedGrid:
    """Grids of a weight, of which `alive` is a copy with the weights of dead inputs at 0: both (out, in).

    As in GPTQ's code: one grid per row counts dead inputs as well, the grids of groups do not.
    """
    return fit_grid(weight if grid.group_size is None else alive, grid)


def to_columns(matrix: Tensor, factor: InverseFactor) -> Tensor:
    """(out, in) → (in, out), inputs in the factor's order, each contiguous."""
    return (matrix.T if factor.order is None else matrix.T[factor.order]).contiguous()


def from_columns(work: Tensor, factor: InverseFactor) -> Tensor:
    """Undo `to_columns`: (in, out) → (out, in)."""
    return (work if factor.order is None else work[factor.order.argsort()]).T.contiguous()


def compress(recipe: GPTQ, layer: Layer) -> WeightResult:
    """Carry out a recipe on one layer."""
    factor = layer.inputs.factor(act_order=recipe.act_order)
    rounded, fitted = gptq(layer.weight, factor, recipe.grid, static_groups=recipe.static_groups, zeroed=layer.zeroed)
    return WeightResult(rounded, damping=factor.damping, grid=fitted)
