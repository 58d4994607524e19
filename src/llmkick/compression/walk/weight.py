"""Compressing one weight by one recipe: checks, the kernels of its steps, and the error of the layer's output."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import encode
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.recipe import Recipe, Recovered, is_trained, steps_of
from llmkick.compression.registry import method_named, parse_recipe
from llmkick.compression.walk.recover_layer import recover_layer
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import first_not_finite

__all__ = ["WeightResult", "compress_weight", "compress_with_statistics", "relative_output_error"]

OUTPUTS_AT_ONCE = 1024  # outputs of a layer whose error is computed together


def compress_weight(weight: Tensor, inputs: Tensor | None, recipe: Recipe | str) -> Tensor:
    """A compressed copy of one linear layer's weight, in its dtype and on its device.

    weight: (out, in). inputs: the layer's inputs on calibration text, (sequences, tokens, in), of any floating dtype;
    None for recipes that need no calibration. Errors as in `compress_with_statistics`.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    _check_form(weight, "weight")
    check_finite([weight], ["weight"])
    statistics = None
    if inputs is not None:
        statistics = InputStatistics(weight.shape[1], hessian=recipe.needs_hessian, name="inputs")
        statistics.add(inputs.to(weight.device))
    return compress_with_statistics(weight, statistics, recipe).weight


def compress_with_statistics(
    weight: Tensor,
    statistics: InputStatistics | None,
    recipe: Recipe,
    *,
    name: str = "weight",
    is_checked: bool = True,
) -> WeightResult:
    """Compress one weight (out, in) given the statistics of its inputs; `name` is for error messages.

    Raises ConfigError for a shape that does not fit the recipe and for missing inputs; NumericalError for NaN or Inf in
    the weight, in its inputs or in the result, and for a Hessian that cannot be factorised. is_checked: off for a
    caller that looks for NaN and Inf itself, in many weights and results at once, because a GPU has to be waited for.
    """
    if is_trained(recipe):
        raise ConfigError(f"{recipe} trains a whole network, which one weight is not; give compress() the model")
    return compress_alike([weight], [statistics], recipe, [name], is_checked=is_checked)[0]


def compress_alike(
    weights: Sequence[Tensor],
    statistics: Sequence[InputStatistics | None],
    recipe: Recipe,
    names: Sequence[str],
    *,
    is_checked: bool = True,
) -> list[WeightResult]:
    """Compress weights of one shape (out, in), of which each has statistics of its own, at once. Errors as above."""
    for weight, name in zip(weights, names, strict=True):
        _check_form(weight, name)
    if is_checked:
        check_finite(weights, names)
    for weight, of_inputs, name in zip(weights, statistics, names, strict=True):
        _check_fit(weight, of_inputs, recipe, name)
    steps = steps_of(recipe)
    # Empty statistics, which no step uses: recipes that need statistics have passed the check above.
    inputs = [
        InputStatistics(weight.shape[1], hessian=False, name=name) if of_inputs is None else of_inputs
        for weight, of_inputs, name in zip(weights, statistics, names, strict=True)
    ]
    results = [WeightResult(weight.detach()) for weight in weights]
    dampings: list[list[float]] = [[] for _ in weights]
    for step in steps:
        # Pruned weights stay 0 in later steps of a chain: rounding with compensation would change them.
        layers = [
            Layer(weight=result.weight, inputs=own, zeroed=None if step is steps[0] else result.weight == 0, name=name)
            for result, own, name in zip(results, inputs, names, strict=True)
        ]
        results = method_named(step.method).run_alike(step, layers)
        for result, used in zip(results, dampings, strict=True):
            used += [] if result.damping is None else [result.damping]
    finished = [
        _finished(result, weight, used) for result, weight, used in zip(results, weights, dampings, strict=True)
    ]
    if isinstance(recipe, Recovered):
        # Before: a recovery would end with an error of its own, or hide the values that are not finite.
        _check_held(finished, recipe, names)
        every = zip(weights, finished, inputs, strict=True)
        finished = [recover_layer(recipe.recovery, weight, result, own) for weight, result, own in every]
    if is_checked:
        _check_held(finished, recipe, names)
    return finished


def _finished(result: WeightResult, original: Tensor, dampings: Sequence[float]) -> WeightResult:
    """A result in the precision of the original weight, with its codes."""
    compressed = result.weight.to(original.dtype)
    codes = None if result.grid is None else encode(result.weight, result.grid)
    return WeightResult(compressed, max(dampings, default=None), result.grid, codes)


def relative_output_error(original: Tensor, compressed: Tensor, inputs: Tensor) -> float | None:
    """‖X(Ŵ − W)ᵀ‖ / ‖XWᵀ‖ in float32, Frobenius norms; None when all outputs are zero.

    original W, compressed Ŵ: (out, in); inputs X: (tokens, in).
    """
    return relative_error(output_squares(original, compressed, inputs).tolist())


def output_squares(original: Tensor, compressed: Tensor, inputs: Tensor) -> Tensor:
    """‖XWᵀ‖² and ‖X(Ŵ − W)ᵀ‖² of some outputs at a time, on their device: (pieces, 2) float64. Arguments as above."""
    rows = inputs.detach().float()
    squares: list[Tensor] = []
    # Some outputs at a time: a wide layer in float32 would take as much memory as everything else together.
    for start in range(0, len(original), OUTPUTS_AT_ONCE):
        dense = original[start : start + OUTPUTS_AT_ONCE].detach().float()
        change = compressed[start : start + OUTPUTS_AT_ONCE].detach().float() - dense
        both = [(rows @ matrix.T).square().sum(dtype=torch.float64) for matrix in (dense, change)]
        squares.append(torch.stack(both))
    return torch.stack(squares)


def relative_error(squares: Iterable[Sequence[float]]) -> float | None:
    """The relative error of a layer's output from its `output_squares`; None when all outputs are zero."""
    output_square = change_square = 0.0
    for output, changed in squares:
        output_square += output
        change_square += changed
    return None if output_square == 0 else (change_square / output_square) ** 0.5


def check_finite(weights: Sequence[Tensor], names: Sequence[str]) -> None:
    """Raise NumericalError that names the first weight with NaN or Inf. A GPU is waited for once."""
    place = first_not_finite(weights)
    if place is not None:
        raise NumericalError(f"{names[place]}: the weight holds NaN or Inf; the checkpoint is damaged or overflowed")


def not_held(name: str, recipe: Recipe, dtype: torch.dtype) -> NumericalError:
    """The error for a compressed weight that is not finite."""
    return NumericalError(f"{name}: {recipe} leads to values that {dtype} cannot hold; use float32")


def _check_form(weight: Tensor, name: str) -> None:
    if weight.dim() != 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ConfigError(f"{name}: {tuple(weight.shape)} of {weight.dtype} is not a floating-point matrix (out, in)")


def _check_held(results: Sequence[WeightResult], recipe: Recipe, names: Sequence[str]) -> None:
    place = first_not_finite([result.weight for result in results])
    if place is not None:
        raise not_held(names[place], recipe, results[place].weight.dtype)


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
