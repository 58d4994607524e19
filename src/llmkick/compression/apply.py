"""How the built-in methods apply their recipes to one layer: recipe and layer in, compressed weight out.

The registry names these functions as text, so that torch is imported when the first layer is compressed. Those whose
name ends in `_alike` compress several layers of one shape at once.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.factor import HessianFactor, stacked_factors
from llmkick.compression.kernels.gptq import gptq
from llmkick.compression.kernels.grid import FittedGrid
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.kernels.magnitude import magnitude
from llmkick.compression.kernels.rtn import rtn
from llmkick.compression.kernels.sparsegpt import sparsegpt
from llmkick.compression.kernels.wanda import wanda
from llmkick.compression.recipe import GPTQ, RTN, Dense, Magnitude, SparseGPT, Wanda


def apply_dense(recipe: Dense, layer: Layer) -> WeightResult:
    """A copy of the weight."""
    return WeightResult(layer.weight.clone())


def apply_magnitude(recipe: Magnitude, layer: Layer) -> WeightResult:
    """Prune the smallest weights."""
    return WeightResult(magnitude(layer.weight, recipe.pattern))


def apply_wanda(recipe: Wanda, layer: Layer) -> WeightResult:
    """Prune the smallest products of weight and input norm."""
    return WeightResult(wanda(layer.weight, layer.inputs.mean_square(), recipe.pattern))


def apply_sparsegpt(recipe: SparseGPT, layer: Layer) -> WeightResult:
    """Prune column by column, with compensation; round too if the recipe has a grid."""
    factor = layer.inputs.factor()
    weight, grid = sparsegpt(layer.weight, factor, recipe.pattern, recipe.grid)
    return WeightResult(weight, damping=factor.damping, grid=grid)


def apply_rtn(recipe: RTN, layer: Layer) -> WeightResult:
    """Round to nearest. Weights that an earlier step pruned stay 0, because 0 rounds to 0."""
    weight, grid = rtn(layer.weight, recipe.grid)
    return WeightResult(weight, grid=grid)


def apply_gptq(recipe: GPTQ, layer: Layer) -> WeightResult:
    """Round column by column, with compensation; weights that an earlier step pruned stay 0."""
    factor = layer.inputs.factor(act_order=recipe.act_order)
    weight, grid = gptq(layer.weight, factor, recipe.grid, static_groups=recipe.static_groups, zeroed=layer.zeroed)
    return WeightResult(weight, damping=factor.damping, grid=grid)


def apply_wanda_alike(recipe: Wanda, layers: Sequence[Layer]) -> list[WeightResult]:
    """`apply_wanda` for several layers of one shape."""
    mean_squares = torch.stack([layer.inputs.mean_square() for layer in layers])
    return [WeightResult(weight) for weight in wanda(_stacked(layers), mean_squares, recipe.pattern)]


def apply_sparsegpt_alike(recipe: SparseGPT, layers: Sequence[Layer]) -> list[WeightResult]:
    """`apply_sparsegpt` for several layers of one shape."""
    factors = InputStatistics.factors([layer.inputs for layer in layers])
    weights, grid = sparsegpt(_stacked(layers), stacked_factors(factors), recipe.pattern, recipe.grid)
    return _results(weights, factors, grid)


def apply_gptq_alike(recipe: GPTQ, layers: Sequence[Layer]) -> list[WeightResult]:
    """`apply_gptq` for several layers of one shape, which an earlier step has pruned or not."""
    factors = InputStatistics.factors([layer.inputs for layer in layers], act_order=recipe.act_order)
    pruned = [layer.zeroed for layer in layers if layer.zeroed is not None]
    weights, grid = gptq(
        _stacked(layers), stacked_factors(factors), recipe.grid, static_groups=recipe.static_groups,
        zeroed=torch.stack(pruned) if pruned else None,
    )  # fmt: skip
    return _results(weights, factors, grid)


def _stacked(layers: Sequence[Layer]) -> Tensor:
    return torch.stack([layer.weight for layer in layers])


def _results(weights: Tensor, factors: Sequence[HessianFactor], grid: FittedGrid | None) -> list[WeightResult]:
    """The result of each of several weights (weights, out, in)."""
    grids: list[FittedGrid | None] = [None] * len(factors)
    if grid is not None:
        grids = [replace(grid, scale=scale, zero=zero) for scale, zero in zip(grid.scale, grid.zero, strict=True)]
    return [
        WeightResult(weight, damping=factor.damping, grid=own)
        for weight, factor, own in zip(weights, factors, grids, strict=True)
    ]
