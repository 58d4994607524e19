"""SparseGPT (arXiv 2301.00774): prune the columns one by one; those that follow make up for each error."""

from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.columns import ColumnGrids, Columns, Replacement
from llmkick.compression.kernels.gptq import fit_beforehand
from llmkick.compression.kernels.grid import FittedGrid
from llmkick.compression.kernels.hessian import HessianFactor
from llmkick.compression.kernels.masks import zero_lowest_per_group, zero_up_to_quantile
from llmkick.compression.kernels.patterns import NM, Grid, Pattern


def sparsegpt(
    weight: Tensor, factor: HessianFactor, pattern: Pattern, grid: Grid | None = None
) -> tuple[Tensor, FittedGrid | None]:
    """Prune a weight, and round it if there is a grid: (out, in) → float32 (out, in), and the grid.

    Lowest |w| · size first, which is |w| / U_jj: the order of the paper's squares, which would leave float32 sooner.
    Unstructured: one threshold over all rows of each block of 128 columns, when the blocks before have been worked
    on. N:M: within each group, when the columns before have. The grid is fitted to the weight before pruning.
    """
    alive = factor.without_dead(weight)
    fitted = None if grid is None else fit_beforehand(weight, alive, grid)
    whole = Replacement()
    if fitted is not None:
        whole = Replacement(grids=ColumnGrids.of(fitted, torch.arange(weight.shape[1], device="cpu") // fitted.group))
    columns, size = Columns(alive, factor), factor.size[:, None]
    del alive

    def chosen(start: int, stop: int) -> Replacement:
        scores = columns.settled(start, stop).abs_().mul_(size[start:stop])
        return replace(whole[start:stop], zeroed=_mask(scores, pattern))

    columns.sweep(chosen, group=pattern.group if isinstance(pattern, NM) else 1)
    return columns.weight(), fitted


def _mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Which of (columns, out) to zero."""
    if isinstance(pattern, NM):
        return zero_lowest_per_group(scores.T, pattern).T.contiguous()
    return zero_up_to_quantile(scores, pattern.sparsity)
