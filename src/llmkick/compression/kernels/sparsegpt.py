"""SparseGPT (arXiv 2301.00774): prune the columns one by one; the later columns compensate for each error."""

from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.columns import Columns
from llmkick.compression.kernels.factor import HessianFactor
from llmkick.compression.kernels.gptq import fit_beforehand
from llmkick.compression.kernels.grid import FittedGrid
from llmkick.compression.kernels.masks import zero_up_to_quantiles
from llmkick.compression.kernels.patterns import NM, Grid, Pattern
from llmkick.compression.kernels.replacement import ColumnGrids, LowestOfGroups, Replacement


def sparsegpt(
    weight: Tensor, factor: HessianFactor, pattern: Pattern, grid: Grid | None = None
) -> tuple[Tensor, FittedGrid | None]:
    """Prune a weight, and round it if there is a grid: (…, out, in) → float32 (…, out, in), and the grid.

    The weights with the lowest |w| · size, which is |w| / U_jj, are pruned: the order of the paper's squared scores,
    which would overflow float32 sooner. Unstructured: one threshold over all rows for each block of 128 columns, taken
    when the blocks before it are done. N:M: within each group, when the columns before it are done. The grid is fitted
    to the weight before pruning.
    """
    alive = factor.without_dead(weight)
    fitted = None if grid is None else fit_beforehand(weight, alive, grid)
    grids = lowest = None
    if fitted is not None:
        grids = ColumnGrids.of(fitted, torch.arange(weight.shape[-1], device=weight.device) // fitted.group)
    if isinstance(pattern, NM):
        lowest = LowestOfGroups(count=pattern.group - pattern.kept, group=pattern.group, size=factor.size)
    whole, columns = Replacement(lowest=lowest, grids=grids), Columns(alive, factor)
    del alive
    if isinstance(pattern, NM):
        columns.sweep(whole)
        return columns.weight(), fitted

    def choose(start: int, stop: int) -> Replacement:
        scores = columns.settled(start, stop).abs_().mul_(factor.size[..., start:stop, None])
        return replace(whole.part(start, stop), zeroed=zero_up_to_quantiles(scores, pattern.sparsity))

    columns.sweep(choose)
    return columns.weight(), fitted
