"""GPTQ (arXiv 2210.17323): round the columns one by one; those that follow make up for each error."""

from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.columns import ColumnGrids, Columns, Replacement
from llmkick.compression.kernels.grid import FittedGrid, fit_grid
from llmkick.compression.kernels.hessian import HessianFactor
from llmkick.compression.kernels.patterns import Grid


def gptq(
    weight: Tensor,
    factor: HessianFactor,
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
    width = weight.shape[1]
    group = grid.group_size or width
    alive = factor.without_dead(weight)
    fitted = fit_beforehand(weight, alive, grid)
    fit_on_the_way = grid.group_size is not None and not static_groups and factor.order is None
    order = torch.arange(width, device="cpu") if factor.order is None else factor.order.cpu()
    grids = ColumnGrids.of(fitted, order // group)
    pruned = None if zeroed is None else (zeroed.T if factor.order is None else zeroed.T[factor.order]).contiguous()
    whole = Replacement(zeroed=pruned, grids=grids)
    columns = Columns(alive, factor)
    del alive

    def chosen(start: int, stop: int) -> Replacement:
        if fit_on_the_way:
            fresh = fit_grid(columns.settled(start, stop).T, replace(grid, group_size=None))
            number = start // group
            fitted.scale[:, number], fitted.zero[:, number] = fresh.scale[:, 0], fresh.zero[:, 0]
            of_group = ColumnGrids.of(fresh, torch.zeros(stop - start, dtype=torch.int64, device="cpu"))
            return replace(whole[start:stop], grids=of_group)
        return whole[start:stop]

    columns.sweep(chosen, group=group if fit_on_the_way else 1)
    return columns.weight(), fitted


def fit_beforehand(weight: Tensor, alive: Tensor, grid: Grid) -> FittedGrid:
    """Grids of a weight, of which `alive` is a copy with the weights of dead inputs at 0: both (out, in).

    As in GPTQ's code: one grid per row counts dead inputs as well, the grids of groups do not.
    """
    return fit_grid(weight if grid.group_size is None else alive, grid)
