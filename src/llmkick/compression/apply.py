"""How the built-in methods apply their recipes to one layer: recipe and layer in, compressed weight out.

The registry names these functions as text, so that torch is imported when the first layer is compressed.
"""

from llmkick.compression.kernels.gptq import gptq
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
