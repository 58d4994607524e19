"""Compressing one weight by one recipe: checks, the kernels of its steps, and the error of the layer's output."""

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import encode
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.recipe import Recipe, Recovered, is_trained, steps_of
from llmkick.compression.registry import method_named, parse_recipe
from llmkick.compression.walk.recover_layer import recover_layer
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import all_finite

__all__ = ["WeightResult", "compress_weight", "compress_with_statistics", "relative_output_error"]

OUTPUTS_AT_ONCE = 1024  # outputs of a layer whose error is computed together


def compress_weight(weight: Tensor, inputs: Tensor | None, recipe: Recipe | str) -> Tensor:
    """A compressed copy of one linear layer's weight, in its dtype and on its device.

    weight: (out, in). inputs: the layer's inputs on calibration text, (sequences, tokens, in), of any floating dtype;
    None for recipes that need no calibration. Errors as in `compress_with_statistics`.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    _check_weight(weight, "weight")
    statistics = None
    if inputs is not None:
        statistics = InputStatistics(weight.shape[1], hessian=recipe.needs_hessian, name="inputs")
        statistics.add(inputs.to(weight.device))
    return compress_with_statistics(weight, statistics, recipe).weight


def compress_with_statistics(
    weight: Tensor, statistics: InputStatistics | None, recipe: Recipe, *, name: str = "weight"
) -> WeightResult:
    """Compress one weight (out, in) given the statistics of its inputs; `name` is for error messages.

    Raises ConfigError for a shape that does not fit the recipe and for missing inputs; NumericalError for NaN or Inf in
    the weight, in its inputs or in the result, and for a Hessian that cannot be factorised.
    """
    if is_trained(recipe):
        raise ConfigError(f"{recipe} trains a whole network, which one weight is not; give compress() the model")
    _check_weight(weight, name)
    _check_fit(weight, statistics, recipe, name)
    steps = steps_of(recipe)
    # Empty statistics, which no step uses: recipes that need statistics have passed the check above.
    if statistics is None:
        statistics = InputStatistics(weight.shape[1], hessian=False, name=name)
    result, dampings = WeightResult(weight.detach()), []
    for step in steps:
        # Pruned weights stay 0 in later steps of a chain: rounding with compensation would change them.
        zeroed = None if step is steps[0] else result.weight == 0
        layer = Layer(weight=result.weight, inputs=statistics, zeroed=zeroed, name=name)
        result = method_named(step.method).run(step, layer)
        dampings += [] if result.damping is None else [result.damping]
    compressed = result.weight.to(weight.dtype)
    _check_held(compressed, recipe, name)
    codes = None if result.grid is None else encode(result.weight, result.grid)
    result = WeightResult(compressed, max(dampings, default=None), result.grid, codes)
    if isinstance(recipe, Recovered):
        result = recover_layer(recipe.recovery, weight, result, statistics)
        _check_held(result.weight, recipe, name)
    return result


def relative_output_error(original: Tensor, compressed: Tensor, inputs: Tensor) -> float | None:
    """‖X(Ŵ − W)ᵀ‖ / ‖XWᵀ‖ in float32, Frobenius norms; None when all outputs are zero.

    original W, compressed Ŵ: (out, in); inputs X: (tokens, in).
    """
    rows = inputs.detach().float()
    squares: list[Tensor] = []
    # Some outputs at a time: a wide layer in float32 would take as much memory as everything else together.
    for start in range(0, len(original), OUTPUTS_AT_ONCE):
        dense = original[start : start + OUTPUTS_AT_ONCE].detach().float()
        change = compressed[start : start + OUTPUTS_AT_ONCE].detach().float() - dense
        both = [(rows @ matrix.T).square().sum(dtype=torch.float64) for matrix in (dense, change)]
        squares.append(torch.stack(both))
    # Numbers are read once, because a GPU has to be waited for.
    output_square = change_square = 0.0
    for output, changed in torch.stack(squares).tolist():
        output_square += output
        change_square += changed
    return None if output_square == 0 else (change_square / output_square) ** 0.5


def _check_weight(weight: Tensor, name: str) -> None:
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ConfigError(f"{name}: {tuple(weight.shape)} of {weight.dtype} is not a floating-point matrix (out, in)")
    if not all_finite(weight):
        raise NumericalError(f"{name}: the weight holds NaN or Inf; the checkpoint is damaged or overflowed")


def _check_held(compressed: Tensor, recipe: Recipe, name: str) -> None:
    if not all_finite(compressed):
        raise NumericalError(f"{name}: {recipe} leads to values that {compressed.dtype} cannot hold; use float32")


def _check_fit(weight: Tensor, statistics: InputStatistics | None, recipe: Recipe, name: str) -> None:
    width = weight.shape[1]
    if width % recipe.multiple:
        raise ConfigError(
            f"{name}: in-features {width} is not a multiple of {recipe.multiple}, as {recipe} needs;"
            " choose a pattern whose M divides it"
        )
    if recipe.needs_calibration and statistics is None:
        raise ConfigError(f"{name}: {recipe} needs calibration inputs (sequences, tokens, {width}), not None")
    if statistics is not None and statistics.width != width:
        raise ConfigError(f"{name}: in-features {width}, but the statistics are of {statistics.width} inputs")
