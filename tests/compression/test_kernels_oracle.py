"""Kernels against the reference implementations' outputs, a brute-force solution and golden numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmkick.compression.kernels.columns import spans
from llmkick.compression.recipe import GPTQ, NM, Grid, SparseGPT
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import compress_weight, relative_output_error

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracles" / "kernels.safetensors"
RECIPES = [
    *[f"{method}@{level}" for method in ("magnitude", "wanda", "sparsegpt")
      for level in ("0.1", "0.25", "0.5", "0.7", "1:2", "2:4", "4:8")],
    *[f"{method}@{bits}b" for method in ("rtn", "gptq") for bits in (2, 3, 4, 8)],
    "gptq@3b-g128", "gptq@4b-g128", "gptq@4b-sym", "gptq@4b-act", "gptq@4b-g128-act-static",
    "sparsegpt@0.5+4b",
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    if not ORACLE.exists():
        pytest.skip(f"no reference outputs at {ORACLE}")
    return load_file(ORACLE)


def test_every_reference_output_is_checked(oracle: dict[str, Tensor]) -> None:
    assert set(RECIPES) == set(oracle) - {"weight", "inputs"}


@pytest.mark.parametrize("text", RECIPES)
def test_kernel_equals_the_reference(oracle: dict[str, Tensor], text: str) -> None:
    weight, inputs, expected = oracle["weight"], oracle["inputs"], oracle[text]
    found = compress_weight(weight, inputs, parse_recipe(text))
    if text.startswith(("magnitude", "wanda", "rtn")):
        assert torch.equal(found, expected)
        return
    equal = (found - expected).abs() <= 1e-5
    assert equal.double().mean() >= 0.999
    if not parse_recipe(text).is_rounding:
        assert torch.equal(found == 0, expected == 0)
    rows = inputs.flatten(0, 1)
    error = relative_output_error(weight, found, rows)
    assert error == pytest.approx(relative_output_error(weight, expected, rows), rel=1e-4)


# The definition that both papers start from: after each column, minimise the change of the layer's output
# over the columns that follow. An explicit inverse per column, in double precision, nothing blocked.

Choose = Callable[[int, Tensor], Tensor]


def brute_force(weight: Tensor, hessian: Tensor, choose: Choose) -> Tensor:
    weight = weight.double().clone()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        values = choose(column, weight)
        error = (weight[:, column] - values) / inverse[0, 0]
        weight[:, column:] -= error[:, None] * inverse[0]
        weight[:, column] = values
    return weight


def damped(inputs: Tensor) -> Tensor:
    rows = inputs.flatten(0, 1).double()
    hessian = 2 / inputs.shape[0] * rows.T @ rows
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))


def rounder(span: Tensor, grid: Grid) -> Callable[[Tensor], Tensor]:
    """Rounding (out,) to the grids of the rows of `span` (out, columns)."""
    low, high, top = span.amin(1).clamp(max=0), span.amax(1).clamp(min=0), 2**grid.bits - 1
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = (high - low) / top
    zero = torch.full_like(scale, 2 ** (grid.bits - 1)) if grid.symmetric else (-low / scale).round()
    return lambda values: scale * (((values / scale).round() + zero).clamp(0, top) - zero)


def brute_gptq(weight: Tensor, inputs: Tensor, recipe: GPTQ, zeroed: Tensor | None = None) -> Tensor:
    hessian, group = damped(inputs), recipe.grid.group_size or weight.shape[1]
    order = torch.arange(weight.shape[1])
    if recipe.act_order:
        order = hessian.diagonal().argsort(descending=True)
    fixed = [rounder(part.double(), recipe.grid) for part in torch.split(weight, group, dim=1)]

    def choose(column: int, current: Tensor) -> Tensor:
        number = int(order[column]) // group
        if not recipe.static_groups and recipe.grid.group_size is not None and column % group == 0:
            fixed[number] = rounder(current[:, column : column + group], recipe.grid)
        values = fixed[number](current[:, column])
        return values if zeroed is None else values.masked_fill(zeroed[:, column], 0)

    result = brute_force(weight[:, order], hessian[order][:, order], choose)
    return result[:, order.argsort()]


def brute_sparsegpt(weight: Tensor, inputs: Tensor, recipe: SparseGPT) -> Tensor:
    hessian, columns = damped(inputs), weight.shape[1]
    remaining = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(columns)])
    mask = torch.zeros_like(weight, dtype=torch.bool)
    span = recipe.pattern.group if isinstance(recipe.pattern, NM) else 128
    group = (recipe.grid.group_size if recipe.grid else None) or columns
    fixed = [rounder(part.double(), recipe.grid) for part in torch.split(weight, group, dim=1) if recipe.grid]

    def choose(column: int, current: Tensor) -> Tensor:
        if column % span == 0:
            scores = current[:, column : column + span].square() / remaining[column : column + span]
            if isinstance(recipe.pattern, NM):
                lowest = scores.argsort(dim=1)[:, : span - recipe.pattern.kept]
                mask[:, column : column + span].scatter_(1, lowest, True)
            else:
                threshold = scores.flatten().sort().values[int(scores.numel() * recipe.pattern.sparsity)]
                mask[:, column : column + span] = scores <= threshold
        values = current[:, column].masked_fill(mask[:, column], 0)
        return fixed[column // group](values) if fixed else values

    return brute_force(weight, hessian, choose)


def problem(rows: int = 12, columns: int = 160, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and correlated inputs of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / math.sqrt(columns)
    size = torch.rand(columns, generator=generator) * 3 + 0.1
    inputs = torch.randn(3, 120, columns, generator=generator) @ mixing * size
    return torch.randn(rows, columns, generator=generator), inputs


def assert_rows_equal(found: Tensor, expected: Tensor) -> None:
    # A weight on the boundary between two choices may fall to either side, and changes the rest of its row.
    different = ((found - expected).abs() > 2e-4).any(dim=1)
    assert int(different.sum()) <= 1, (found - expected).abs().amax(dim=1)


@pytest.mark.parametrize(
    "text",
    ["gptq@2b", "gptq@4b", "gptq@4b-sym", "gptq@4b-act", "gptq@3b-g16", "gptq@3b-g48", "gptq@3b-g64", "gptq@3b-g80",
     "gptq@3b-g160", "gptq@3b-g20-sym", "gptq@3b-g20-static", "gptq@3b-g32-act"],
)  # fmt: skip
def test_gptq_equals_brute_force(text: str) -> None:
    weight, inputs = problem()
    recipe = parse_recipe(text)
    assert isinstance(recipe, GPTQ)
    assert_rows_equal(compress_weight(weight, inputs, recipe), brute_gptq(weight, inputs, recipe))


@pytest.mark.parametrize("group", [144, 288])  # wider than a block of 128 columns, once and twice in a row
def test_gptq_with_wide_groups_equals_brute_force(group: int) -> None:
    weight, inputs = problem(columns=288)
    recipe = parse_recipe(f"gptq@3b-g{group}")
    assert isinstance(recipe, GPTQ)
    assert_rows_equal(compress_weight(weight, inputs, recipe), brute_gptq(weight, inputs, recipe))


@pytest.mark.parametrize(
    "text", ["sparsegpt@0.3", "sparsegpt@0.7", "sparsegpt@2:4", "sparsegpt@3:5", "sparsegpt@20:40",
             "sparsegpt@0.5+3b", "sparsegpt@2:4+4b-g20"],
)  # fmt: skip
def test_sparsegpt_equals_brute_force(text: str) -> None:
    weight, inputs = problem()
    recipe = parse_recipe(text)
    assert isinstance(recipe, SparseGPT)
    assert_rows_equal(compress_weight(weight, inputs, recipe), brute_sparsegpt(weight, inputs, recipe))


@pytest.mark.parametrize("rounding", ["gptq@4b", "gptq@3b-g20", "gptq@4b-g32-act"])
def test_chain_equals_brute_force_with_the_zeros_held(rounding: str) -> None:
    weight, inputs = problem()
    pruned = compress_weight(weight, inputs, parse_recipe("wanda@0.5"))
    recipe = parse_recipe(rounding)
    assert isinstance(recipe, GPTQ)
    zeroed = pruned == 0
    if recipe.act_order:
        order = damped(inputs).diagonal().argsort(descending=True)
        zeroed = zeroed[:, order]
    expected = brute_gptq(pruned, inputs, recipe, zeroed)
    found = compress_weight(weight, inputs, parse_recipe(f"wanda@0.5+{rounding}"))
    assert_rows_equal(found, expected)


def test_blocks_never_cut_a_group() -> None:
    assert spans(0, 300, 128, 1) == [(0, 128), (128, 256), (256, 300)]
    assert spans(0, 250, 128, 5) == [(0, 125), (125, 250)]
    assert spans(0, 400, 128, 200) == [(0, 128), (128, 200), (200, 328), (328, 400)]
    assert spans(128, 200, 32, 200) == [(128, 160), (160, 192), (192, 200)]
    assert spans(96, 128, 32, 4) == [(96, 128)]
    for columns, group in [(96, 32), (129, 43), (512, 128), (390, 130), (64, 64)]:
        bounds = spans(0, columns, 128, group)
        assert [start for start, _ in bounds[1:]] == [stop for _, stop in bounds[:-1]]
        assert (bounds[0][0], bounds[-1][1]) == (0, columns)
        starts = {start for start, _ in bounds}
        assert all(first in starts or group <= 128 for first in range(0, columns, group))
        assert group > 128 or all(start % group == 0 for start in starts)


# Numbers written down once from the brute force above, so that both cannot drift together.

GOLDEN_STEPS = [0.21041666666666667, 0.2125, 0.21145833333333333, 0.21041666666666667]
GOLDEN_CODES = {
    "gptq@4b": [
        [-8, 0, 7, -1, 7, -2, 6, -2, 5, -3, 5, -4, 4, -4, 3, -5],
        [-5, 4, -3, 6, -1, 7, 1, -6, 2, -4, 4, -2, 6, -1, -8, 1],
        [-2, 8, 2, -4, 7, 1, -5, 5, 0, -6, 4, -2, -7, 2, -3, 7],
        [0, -4, 7, 3, -1, -6, 6, 1, -3, -8, 4, -1, -5, 6, 2, -2],
    ],
    "gptq@4b-act": [
        [-8, 0, 7, -1, 7, -2, 6, -2, 5, -3, 5, -4, 4, -4, 3, -5],
        [-5, 4, -3, 5, -1, 7, 1, -6, 2, -4, 4, -2, 6, -1, -8, 1],
        [-2, 8, 2, -3, 6, 1, -5, 5, 0, -6, 4, -2, -7, 2, -3, 7],
        [1, -4, 7, 3, -2, -5, 5, 1, -3, -8, 4, -1, -5, 6, 2, -3],
    ],
}
GOLDEN_PRUNED = {
    "sparsegpt@0.5": [
        [-1.64062, 0, 1.48895, 0, 1.28168, 0, 1.0918, 0, 0.86788, 0, 0.69706, 0, 0.51979, -0.60818, 0,
         -0.78701],
        [0, 0, 0, 0.76553, 0, 1.59662, 0, -1.31957, 0, -0.46154, 0.75658, 0, 1.00165, 0, -1.50319, 0],
        [0, 1.35415, 0, 0, 0.78685, 0, -1.08649, 0.80772, 0, -1.38337, 0.69929, 0, -1.91238, 0, 0, 1.15936],
        [0, 0, 1.19362, 0, 0, -1.34408, 1.14898, 0, 0, -1.98831, 0.93824, 0, -1.181, 1.34987, 0, 0],
    ],
    "sparsegpt@2:4": [
        [-1.64062, 0, 1.48895, 0, 1.28168, 0, 1.0918, 0, 0.86788, 0, 0.69706, 0, 0, -0.35593, 0, -0.81922],
        [-1.0625, 0, 0, 0.89558, 0, 1.38497, 0, -1.22103, 0, -0.74087, 0.79648, 0, 0.98687, 0, -1.48057, 0],
        [0, 1.35415, 0, -0.8047, 1.1999, 0, -1.03758, 0, 0, -1.27997, 0.64143, 0, -2.06008, 0, 0, 0.96488],
        [0, -0.7757, 1.52467, 0, 0, -1.39512, 1.26077, 0, 0, -2.02703, 0.92198, 0, -1.12736, 1.37909, 0, 0],
    ],
}  # fmt: skip


def golden_problem() -> tuple[Tensor, Tensor]:
    """A weight (4, 16) and inputs (2, 24, 16) of exact fractions, the same on every machine."""
    row, column = torch.meshgrid(torch.arange(4), torch.arange(16), indexing="ij")
    weight = ((37 * row + 101 * column + 17 * row * column) % 211 - 105) / 64
    token, column = torch.meshgrid(torch.arange(48), torch.arange(16), indexing="ij")
    inputs = ((29 * token * token + 53 * column + 7 * token * column) % 97 - 48) / 32
    return weight, (inputs + 0.5 * inputs.roll(1, 1)).reshape(2, 24, 16)


@pytest.mark.parametrize("text", GOLDEN_CODES)
def test_golden_rounding(text: str) -> None:
    found = compress_weight(*golden_problem(), parse_recipe(text))
    expected = torch.tensor(GOLDEN_CODES[text]) * torch.tensor(GOLDEN_STEPS)[:, None]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", GOLDEN_PRUNED)
def test_golden_pruning(text: str) -> None:
    found = compress_weight(*golden_problem(), parse_recipe(text))
    assert torch.allclose(found, torch.tensor(GOLDEN_PRUNED[text]), rtol=0, atol=2e-5)
