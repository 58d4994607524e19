"""SparseGPT (arXiv 2301.00774): prune the columns one by one; those that follow make up for each error."""

from typing import Any

import torch
from torch import Tensor

from llmkick.compression.gptq import blocks, fast_rows, fit_beforehand, from_columns, sweep, to_columns
from llmkick.compression.grid import FittedGrid, nearest_point
from llmkick.compression.hessian import InverseFactor
from llmkick.compression.masks import zero_lowest_per_group, zero_up_to_quantile
from llmkick.compression.methods import Layer, WeightResult
from llmkick.compression.recipe import NM, Grid, Pattern, SparseGPT


def sparsegpt(
    weight: Tensor, factor: InverseFactor, pattern: Pattern, grid: Grid | None = None
) -> tuple[Tensor, FittedGrid | None]:
    """Prune a weight, and round it if there is a grid: (out, in) → float32 (out, in), and the grid.

    Lowest |w| / U_jj first: the order of the paper's squares, which would leave float32 sooner. Unstructured:
    one threshold over all rows of each block of 128 columns, when the blocks before have been worked on. N:M:
    within each group, when the columns before have. The grid is fitted to the weight before pruning.
    """
    alive = weight.float().masked_fill(factor.dead, 0)
    work = to_columns(alive, factor)
    spread = factor.upper.diagonal()[:, None]  # (in, 1)
    kept = torch.ones_like(work)  # 0 where a weight goes
    fitted = None if grid is None else fit_beforehand(weight, alive, grid)
    bounds = blocks(weight.shape[1], pattern.group if isinstance(pattern, NM) else 1)
    spans = dict(bounds)  # start → stop of the columns whose mask is chosen together
    if isinstance(pattern, NM):
        spans = {start: start + pattern.group for start in range(0, weight.shape[1], pattern.group)}

    kept_rows = fast_rows(kept)
    if fitted is not None:
        scale, zero = fitted.scale.T.contiguous(), fitted.zero.T.contiguous()  # (groups, out)
        scales, lows, highs = fast_rows(scale), fast_rows(-zero), fast_rows(fitted.top - zero)

    def pruned(column: int, values: Any) -> Any:
        if column in spans:
            span = slice(column, spans[column])
            kept[span] = (~_mask(work[span].abs() / spread[span], pattern)).float()
        left = values * kept_rows[column] + 0.0  # −0 becomes 0
        if fitted is None:
            return left
        number = column // fitted.group
        return nearest_point(left, scales[number], lows[number], highs[number])

    sweep(work, factor.upper, bounds, pruned, ahead=pattern.group if isinstance(pattern, NM) else 1)
    return from_columns(work, factor), fitted


def _mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Which of (columns, out) to zero."""
    if isinstance(pattern, NM):
        return zero_lowest_per_group(scores.T, pattern).T
    return zero_up_to_quantile(scores, pattern.sparsity)


def compress(recipe: SparseGPT, layer: Layer) -> WeightResult:
    """Carry out a recipe on one layer."""
    factor = layer.inputs.factor()
    mended, on_grid = sparsegpt(layer.weight, factor, recipe.pattern, recipe.grid)
    return WeightResult(mended, damping=factor.damping, grid=on_grid)
