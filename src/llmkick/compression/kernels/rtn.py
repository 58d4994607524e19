"""Round to nearest: each weight goes to the nearest point of its grid, on its own."""

from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, fit_grid, round_to_grid
from llmkick.compression.methods import Layer, WeightResult
from llmkick.compression.recipe import RTN, Grid


def rtn(weight: Tensor, grid: Grid) -> tuple[Tensor, FittedGrid]:
    """Fit the grid to the weight and round to it: (out, in) → float32 (out, in), and the grid."""
    fitted = fit_grid(weight, grid)
    return round_to_grid(weight, fitted), fitted


def compress(recipe: RTN, layer: Layer) -> WeightResult:
    """Carry out a recipe on one layer. Zeros of an earlier step stay: 0 rounds to 0."""
    rounded, fitted = rtn(layer.weight, recipe.grid)
    return WeightResult(rounded, grid=fitted)
