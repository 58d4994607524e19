"""GPTQ (arXiv 2210.17323): round the columns one by one; the later columns compensate for each error."""

from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.columns import Columns, in_order
from llmkick.compression.kernels.factor import HessianFactor
from llmkick.compression.kernels.grid import FittedGrid, fit_grid
from llmkick.compression.kernels.patterns import Grid
from llmkick.compression.kernels.replacement import ColumnGrids, Replacement


def gptq(
    weight: Tensor,
    factor: HessianFactor,
    grid: Grid,
    *,
    static_groups: bool = False,
    zeroed: Tensor | None = None,
) -> tuple[Tensor, FittedGrid]:
    """Round a weight to a grid with error compensation: (…, out, in) → float32 (…, out, in), and the grid.

    A group's grid is fitted when its first column is reached, to the weights as updated until then; with
    `static_groups`, or if `factor.order` scatters the groups, all grids are fitted beforehand. Weights under `zeroed`
    (…, out, in) become exactly 0, which later columns compensate like a rounding error.
    """
    width = weight.shape[-1]
    group = grid.group_size or width
    alive = factor.without_dead(weight)
    fitted = fit_beforehand(weight, alive, grid)
    fit_on_the_way = grid.group_size is not None and not static_groups and factor.order is None
    order = torch.arange(width, device=weight.device) if factor.order is None else factor.order
    grids = ColumnGrids.of(fitted, order // group)
    pruned = None if zeroed is None else in_order(zeroed.mT, factor.order).contiguous()
    whole = Replacement(zeroed=pruned, grids=grids)
    columns = Columns(alive, factor)
    del alive

    def choose(start: int, stop: int) -> Replacement:
        fresh = fit_grid(columns.settled(start, stop).mT, replace(grid, group_size=None))
        number = start // group
        fitted.scale[..., number], fitted.zero[..., number] = fresh.scale[..., 0], fresh.zero[..., 0]
        group_grid = ColumnGrids.of(fresh, torch.zeros(stop - start, dtype=torch.int64, device=weight.device))
        return replace(whole.part(start, stop), grids=group_grid)

    if fit_on_the_way:
        columns.sweep(choose, group=group)
    else:
        columns.sweep(whole)
    return columns.weight(), fitted


def fit_beforehand(weight: Tensor, alive: Tensor, grid: Grid) -> FittedGrid:
    """Fit all grids before the sweep. alive: the weight with 0 for dead inputs; both (…, out, in).

    As in GPTQ's code, a grid of a whole row is fitted to the weights of dead inputs too, the grids of groups are not.
    """
    return fit_grid(weight if grid.group_size is None else alive, grid)
