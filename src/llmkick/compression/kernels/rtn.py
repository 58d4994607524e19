"""Round to nearest: replace each weight by the nearest point of its grid."""

from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, fit_grid, round_to_grid
from llmkick.compression.kernels.patterns import Grid


def rtn(weight: Tensor, grid: Grid) -> tuple[Tensor, FittedGrid]:
    """Fit the grid to the weight and round to it: (out, in) → float32 (out, in), and the grid."""
    fitted = fit_grid(weight, grid)
    return round_to_grid(weight, fitted), fitted
