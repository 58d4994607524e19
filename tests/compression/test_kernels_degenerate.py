"""Kernels where the answer is known beforehand, at the edges of their domain, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkick.compression.kernels import columns, compiled
from llmkick.compression.kernels.factor import factorise
from llmkick.compression.kernels.gptq import gptq
from llmkick.compression.kernels.grid import decode, round_to_grid
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.magnitude import magnitude
from llmkick.compression.kernels.rtn import rtn
from llmkick.compression.kernels.sparsegpt import sparsegpt
from llmkick.compression.recipe import NM, Grid, Unstructured
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import compress_weight, compress_with_statistics, relative_output_error
from llmkick.errors import ConfigError, NumericalError

EVERY_KIND = [
    "dense", "magnitude@0.5", "magnitude@2:4", "wanda@0.5", "wanda@2:4", "sparsegpt@0.5", "sparsegpt@2:4",
    "sparsegpt@0.5+4b", "sparsegpt@2:4+3b-g8", "rtn@4b", "rtn@4b-g8-sym", "gptq@4b", "gptq@4b-g8",
    "gptq@4b-g8-act", "wanda@0.5+gptq@4b", "sparsegpt@2:4+gptq@3b-g8", "magnitude@0.5+rtn@4b",
]  # fmt: skip
CALIBRATED = [text for text in EVERY_KIND if parse_recipe(text).needs_hessian]


def problem(rows: int = 16, columns: int = 64, tokens: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (rows, columns) and correlated inputs (2, tokens, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / math.sqrt(columns)
    inputs = torch.randn(2, tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs


def output_error(weight: Tensor, inputs: Tensor, text: str) -> float:
    compressed = compress_weight(weight, inputs, parse_recipe(text))
    assert bool(torch.isfinite(compressed).all())
    error = relative_output_error(weight, compressed, inputs.flatten(0, 1))
    assert error is not None
    return error


@pytest.mark.parametrize("scale", [1.0, 1e-20, 3e10])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 16, 200])
def test_with_independent_inputs_gptq_is_rtn(group_size: int | None, act_order: bool, scale: float) -> None:
    weight, _ = problem(columns=400)
    grid = Grid(bits=3, group_size=group_size)
    size = torch.rand(400, generator=torch.Generator().manual_seed(1)) + 0.1
    factor = factorise(scale * torch.diag(size), act_order=act_order)
    rounded, fitted = gptq(weight, factor, grid)
    expected, expected_grid = rtn(weight, grid)
    assert torch.equal(rounded, expected)
    assert torch.equal(fitted.scale, expected_grid.scale)
    assert torch.equal(fitted.zero, expected_grid.zero)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 3e30])
def test_with_independent_inputs_sparsegpt_is_magnitude_block_by_block(scale: float) -> None:
    weight, _ = problem(columns=300)
    factor = factorise(scale * torch.eye(300))
    for pattern in (Unstructured(sparsity=0.6), NM(kept=1, group=4)):
        expected = torch.cat([magnitude(block, pattern) for block in torch.split(weight, 128, dim=1)], dim=1)
        assert torch.equal(sparsegpt(weight, factor, pattern)[0], expected)


def test_sixteen_bits_change_almost_nothing_and_fewer_bits_ever_more() -> None:
    weight, inputs = problem()
    control, _ = gptq(weight, factorise(inputs.flatten(0, 1).T @ inputs.flatten(0, 1)), Grid(bits=16))
    assert torch.allclose(control, weight, atol=2e-4)
    errors = [output_error(weight, inputs, f"gptq@{bits}b") for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors)
    assert errors[0] < 0.005 < errors[3]


@pytest.mark.parametrize(
    ("better", "worse"),
    [("gptq@4b", "rtn@4b"), ("gptq@3b-g8", "rtn@3b-g8"), ("sparsegpt@0.5", "wanda@0.5"),
     ("wanda@0.5", "magnitude@0.5"), ("wanda@0.5+gptq@3b", "wanda@0.5+rtn@3b")],
)  # fmt: skip
def test_compensation_lowers_the_output_error(better: str, worse: str) -> None:
    weight, inputs = problem()
    # A few directions that all inputs share, as activations have, and inputs of different size.
    inputs = (inputs + 2 * inputs[..., :4].repeat(1, 1, 16)) * torch.linspace(0.2, 5, 64)
    assert output_error(weight, inputs, better) < 0.95 * output_error(weight, inputs, worse)


@pytest.mark.parametrize("text", CALIBRATED)
def test_dead_inputs_become_zero_and_matter_to_no_other(text: str) -> None:
    weight, inputs = problem()
    inputs[..., [5, 40]] = 0
    compressed = compress_weight(weight, inputs, parse_recipe(text))
    assert torch.equal(compressed[:, [5, 40]], torch.zeros(16, 2))
    smaller = weight.clone()
    smaller[:, [5, 40]] *= 0.5  # far from the extremes that the grid of a row would take in
    again = compress_weight(smaller, inputs, parse_recipe(text))
    assert torch.equal(again, compressed)


def test_dead_inputs_widen_the_grid_of_a_row_but_not_that_of_a_group() -> None:
    # A quirk of the original implementations, kept so that results agree with theirs.
    weight, inputs = problem()
    inputs[..., 5] = 0
    weight[:, 5] = 100
    statistics = InputStatistics(64, hessian=True)
    statistics.add(inputs)
    for text, wide in [("gptq@4b", True), ("sparsegpt@0.5+4b", True), ("gptq@4b-g8", False),
                       ("gptq@4b-g8-act", False), ("sparsegpt@0.5+4b-g8", False)]:  # fmt: skip
        grid = compress_with_statistics(weight, statistics, parse_recipe(text)).grid
        assert grid is not None
        assert (grid.scale.max() * grid.top > 100) == wide, text


@pytest.mark.parametrize("text", CALIBRATED)
def test_fewer_tokens_than_columns(text: str) -> None:
    weight, inputs = problem(tokens=8)
    statistics = InputStatistics(64, hessian=True)
    statistics.add(inputs)
    assert torch.linalg.matrix_rank(statistics.hessian()) == 16
    result = compress_with_statistics(weight, statistics, parse_recipe(text))
    assert result.damping == 0.01
    dumb = {True: "rtn@3b", False: "magnitude@0.5"}[parse_recipe(text).sparsity is None]
    assert output_error(weight, inputs, text) < output_error(weight, inputs, dumb)


@pytest.mark.parametrize("text", EVERY_KIND)
def test_constant_inputs(text: str) -> None:
    weight, inputs = problem()
    error = output_error(weight, torch.ones_like(inputs), text)
    if text in ("sparsegpt@0.5", "sparsegpt@2:4"):
        assert error < 0.05  # one direction only, and half of the weights to mend it


@pytest.mark.parametrize("text", EVERY_KIND)
def test_huge_outliers(text: str) -> None:
    weight, inputs = problem()
    inputs[..., 7] *= 1e5
    weight[3, 7] = 1e4
    error = output_error(weight, inputs, text)
    compressed = compress_weight(weight, inputs, parse_recipe(text))
    assert compressed[3, 7].item() == pytest.approx(1e4, rel=0.1)  # a symmetric grid has no point at its end
    assert error < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", EVERY_KIND)
def test_half_precision_is_computed_in_float32(text: str, dtype: torch.dtype) -> None:
    weight, inputs = (tensor.to(dtype) for tensor in problem())
    before = weight.clone(), inputs.clone()
    found = compress_weight(weight, inputs, parse_recipe(text))
    assert found.dtype == dtype
    assert torch.equal(found, compress_weight(weight.float(), inputs.float(), parse_recipe(text)).to(dtype))
    assert torch.equal(weight, before[0])
    assert torch.equal(inputs, before[1])
    found.zero_()
    assert torch.equal(weight, before[0])  # the result never shares memory with the original


@pytest.mark.parametrize("text", ["magnitude@0.5", "magnitude@2:4", "wanda@0.5", "wanda@2:4", "dense"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_pruning_alone_keeps_the_other_weights_bit_for_bit(text: str, dtype: torch.dtype) -> None:
    weight, inputs = problem()
    weight = (weight.double() / 3).to(dtype).requires_grad_()
    found = compress_weight(weight, inputs, parse_recipe(text))
    assert not found.requires_grad
    kept = found != 0
    assert torch.equal(found[kept], weight.detach()[kept])
    assert kept.double().mean().item() == pytest.approx(1.0 if text == "dense" else 0.5, abs=0.01)


@pytest.mark.parametrize("rounding", ["gptq@4b", "gptq@3b-g8", "gptq@3b-g8-act", "gptq@4b-sym", "rtn@3b"])
@pytest.mark.parametrize("pruning", ["magnitude@0.5", "wanda@2:4", "sparsegpt@0.5"])
def test_a_chain_keeps_its_zeros_and_ends_on_the_grid(pruning: str, rounding: str) -> None:
    weight, inputs = problem()
    statistics = InputStatistics(64, hessian=True)
    statistics.add(inputs)
    pruned = compress_weight(weight, inputs, parse_recipe(pruning))
    result = compress_with_statistics(weight, statistics, parse_recipe(f"{pruning}+{rounding}"))
    assert torch.equal(result.weight[pruned == 0], pruned[pruned == 0])
    assert result.grid is not None
    assert torch.equal(round_to_grid(result.weight, result.grid), result.weight)
    # Rounding the pruned weight on its own would fill zeros in again: nothing that a chain may do.
    alone = compress_weight(pruned, inputs, parse_recipe(rounding))
    assert rounding.startswith("rtn") or bool((alone[pruned == 0] != 0).any())


def test_ties_are_broken_the_same_way_everywhere() -> None:
    weight, inputs = torch.ones(2, 8), torch.ones(1, 4, 8)
    first = torch.tensor([[0.0, 0, 0, 0, 1, 1, 1, 1]] * 2)
    assert torch.equal(compress_weight(weight, inputs, "wanda@0.5"), first)
    for method in ("magnitude", "wanda"):
        pairs = compress_weight(weight, inputs, f"{method}@2:4")
        assert torch.equal(pairs, torch.tensor([[0.0, 0, 1, 1] * 2] * 2))
    # One threshold for the whole matrix takes all that equal it, as in the original.
    assert torch.equal(compress_weight(weight, None, "magnitude@0.5"), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["gptq@8b-g8", *(t for t in EVERY_KIND if parse_recipe(t).is_rounding)])
def test_codes_and_grid_are_the_weight(text: str, dtype: torch.dtype) -> None:
    weight, inputs = problem(rows=128)
    statistics = InputStatistics(64, hessian=True)
    statistics.add(inputs)
    result = compress_with_statistics(weight.to(dtype), statistics, parse_recipe(text))
    assert result.codes is not None
    assert result.grid is not None
    assert torch.equal(decode(result.codes, result.grid).to(dtype), result.weight)
    in_float32 = compress_with_statistics(weight.to(dtype).float(), statistics, parse_recipe(text))
    assert in_float32.codes is not None
    assert torch.equal(result.codes, in_float32.codes)


@pytest.mark.parametrize(
    ("text", "width", "inputs", "message"),
    [
        ("wanda@2:4", 250, True, "in-features 250 is not a multiple of 4"),
        ("sparsegpt@2:4+4b-g6", 30, True, "in-features 30 is not a multiple of 4"),
        ("magnitude@4:8+rtn@4b", 36, False, "in-features 36 is not a multiple of 8"),
        ("gptq@4b", 32, False, "gptq@4b needs calibration inputs"),
        ("wanda@0.5+rtn@4b", 32, False, "wanda@0.5.* needs calibration inputs"),
    ],
)
def test_layers_that_do_not_suit_the_recipe_are_refused(text: str, width: int, inputs: bool, message: str) -> None:
    activations = torch.ones(1, 4, width) if inputs else None
    with pytest.raises(ConfigError, match=message):
        compress_weight(torch.ones(8, width), activations, parse_recipe(text))


@pytest.mark.parametrize("text", ["rtn@3b-g64", "gptq@3b-g64", "gptq@3b-g64-sym", "gptq@3b-g64-static"])
def test_the_last_group_of_a_row_may_be_smaller(text: str) -> None:
    weight, _ = problem(columns=160)
    # Independent inputs of equal size leave nothing to compensate: each group is rounded on its own.
    inputs = torch.eye(160)[None]
    whole = compress_weight(weight, inputs, text)
    name = "rtn@3b-sym" if "sym" in text else "rtn@3b"
    apart = [compress_weight(piece, None, name) for piece in (weight[:, :64], weight[:, 64:128], weight[:, 128:])]
    torch.testing.assert_close(whole, torch.cat(apart, dim=1), rtol=0, atol=1e-6)


def test_bad_tensors_are_refused() -> None:
    weight, inputs = problem()
    recipe = parse_recipe("wanda@0.5")
    with pytest.raises(ConfigError, match=r"inputs \(400, 64\) are not \(sequences, tokens, 64\)"):
        compress_weight(weight, inputs.flatten(0, 1), recipe)
    with pytest.raises(ConfigError, match=r"\(2, 200, 32\) are not"):
        compress_weight(weight, inputs[..., :32], recipe)
    with pytest.raises(NumericalError, match="no calibration token"):
        compress_weight(weight, inputs[:, :0], recipe)
    for bad in (weight[0], weight.int(), weight[:0]):
        with pytest.raises(ConfigError, match=r"not a floating-point matrix \(out, in\)"):
            compress_weight(bad, inputs, recipe)
    with pytest.raises(ConfigError, match="the statistics are of 32 inputs"):
        compress_with_statistics(weight, InputStatistics(32, hessian=False), recipe)
    statistics = InputStatistics(64, hessian=False)
    statistics.add(inputs)
    with pytest.raises(ConfigError, match="hessian=True"):
        compress_with_statistics(weight, statistics, parse_recipe("gptq@4b"))


@pytest.mark.parametrize("text", EVERY_KIND)
def test_numbers_that_are_not_finite_are_refused_by_name(text: str) -> None:
    recipe = parse_recipe(text)
    weight, inputs = problem()
    inputs[0, 0, 9] = math.inf
    with pytest.raises(NumericalError, match="inputs: 1 of 25600 inputs are NaN or Inf"):
        compress_weight(weight, inputs, recipe)
    weight[1, 2] = math.nan
    with pytest.raises(NumericalError, match="up_proj: the weight holds NaN or Inf"):
        compress_with_statistics(weight, None, recipe, name="up_proj")


def test_a_result_beyond_half_precision_is_refused() -> None:
    weight = torch.full((4, 8), 6e4, dtype=torch.float16)
    statistics = InputStatistics(8, hessian=True)
    statistics.add(torch.ones(1, 64, 8))
    with pytest.raises(NumericalError, match=r"up_proj: .* that torch\.float16 cannot hold"):
        compress_with_statistics(weight, statistics, parse_recipe("sparsegpt@0.5"), name="up_proj")


def test_relative_output_error_is_the_ratio_of_norms() -> None:
    original, inputs = torch.tensor([[3.0, 4.0]]), torch.eye(2)
    assert relative_output_error(original, original, inputs) == 0
    assert relative_output_error(original, torch.tensor([[3.0, 0.0]]), inputs) == pytest.approx(0.8)
    assert relative_output_error(original, 0 * original, inputs.half()) == pytest.approx(1.0)
    assert relative_output_error(0 * original, original, inputs) is None


@pytest.mark.parametrize(
    "text",
    ["gptq@4b", "gptq@3b-g24", "gptq@3b-g64", "gptq@3b-g150", "gptq@4b-g8-act", "sparsegpt@0.5", "sparsegpt@2:4+4b",
     "wanda@0.5+gptq@3b-g24"],
)  # fmt: skip
def test_the_compiled_loop_changes_no_more_than_rounding(monkeypatch: pytest.MonkeyPatch, text: str):
    """On the CPU the loop over columns is compiled; on other devices, and here, torch runs every column.

    The two add up in another order, and a weight half-way between two grid points may go either way.
    """
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(20, 200, generator=generator), torch.randn(3, 90, 200, generator=generator)
    fast = compress_weight(weight, inputs, text)
    monkeypatch.setattr(columns, "is_compiled_for", lambda _device: False)
    slow = compress_weight(weight, inputs, text)
    rows = inputs.flatten(0, 1)
    errors = [relative_output_error(weight, one, rows) for one in (slow, fast)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)
    assert torch.isclose(slow, fast, atol=1e-4).float().mean() > 0.97


def test_compiled_code_needs_no_folder_to_be_kept_in(monkeypatch: pytest.MonkeyPatch):
    """Where neither the package's folder nor the user's cache can be written Numba refuses to keep what it makes."""
    makes = compiled.numba.njit

    def nowhere(function: Any, *, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return makes(function, **options)

    def add_one(values: Any) -> None:
        values += 1

    monkeypatch.setattr(compiled.numba, "njit", nowhere)
    values = np.zeros(3, dtype=np.float32)
    compiled._compiled(add_one)(values)
    assert values.tolist() == [1, 1, 1]
