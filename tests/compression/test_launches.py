"""What a GPU is given to do, and how often the processor waits for it: counted without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from launches import Launches
from llmkick.compression.kernels import columns
from llmkick.compression.kernels.factor import HessianFactor, stacked_factors
from llmkick.compression.kernels.gptq import gptq
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.magnitude import magnitude
from llmkick.compression.kernels.sparsegpt import sparsegpt
from llmkick.compression.kernels.wanda import wanda
from llmkick.compression.recipe import GPTQ, Magnitude, Recipe, SparseGPT, Wanda
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import relative_output_error
from llmkick.models.checkpoints.packed import VALUES_AT_ONCE_ON_A_GPU, Codes, gives

WIDTH = 1024


def factor(width: int, *, act_order: bool) -> HessianFactor:
    return HessianFactor(
        unit=torch.empty(width, width, device="meta"),
        size=torch.empty(width, device="meta"),
        dead=torch.empty(width, dtype=torch.bool, device="meta"),
        order=torch.empty(width, dtype=torch.int64, device="meta") if act_order else None,
        damping=0.01,
    )


def compressed(recipe: Recipe, weights: int = 1, width: int = WIDTH) -> None:
    """The kernel of a recipe on a weight of which only the shape is there, or on several weights at once."""
    weight = torch.empty(*([weights] if weights > 1 else []), 256, width, device="meta")
    factors = [factor(width, act_order=isinstance(recipe, GPTQ) and recipe.act_order) for _ in range(weights)]
    moments = stacked_factors(factors) if weights > 1 else factors[0]
    match recipe:
        case GPTQ():
            gptq(weight, moments, recipe.grid, static_groups=recipe.static_groups)
        case SparseGPT():
            sparsegpt(weight, moments, recipe.pattern, recipe.grid)
        case Wanda():
            wanda(weight, torch.empty(width, device="meta"), recipe.pattern)
        case Magnitude():
            magnitude(weight, recipe.pattern)


@pytest.mark.parametrize(
    ("text", "most"),
    [("gptq@4b", 0.04), ("gptq@4b-act", 0.05), ("gptq@4b-g128", 0.25), ("gptq@4b-g32", 0.85), ("gptq@4b-g32-act", 0.05),
     ("sparsegpt@0.5", 0.1), ("sparsegpt@2:4", 0.03), ("sparsegpt@2:4+4b", 0.05), ("sparsegpt@0.5+4b-g32", 0.15)],
)  # fmt: skip
def test_few_launches_a_column_and_no_wait(monkeypatch: pytest.MonkeyPatch, text: str, most: float):
    with Launches() as counted:
        monkeypatch.setattr(columns, "replacer_for", lambda _device: counted.kernel)
        compressed(parse_recipe(text))
    assert counted.operations["kernel"] >= WIDTH / 128
    assert counted.operations.total() / WIDTH <= most, counted.operations
    assert not counted.synchronisations


@pytest.mark.parametrize("text", ["gptq@4b", "gptq@4b-g128-act", "sparsegpt@0.5", "sparsegpt@2:4+4b"])
def test_several_weights_take_the_launches_of_one(monkeypatch: pytest.MonkeyPatch, text: str):
    totals = []
    for weights in (1, 16):
        with Launches() as counted:
            monkeypatch.setattr(columns, "replacer_for", lambda _device, counted=counted: counted.kernel)
            compressed(parse_recipe(text), weights=weights)
        totals.append(counted.operations.total())
        assert not counted.synchronisations
    assert totals[1] <= totals[0] + 16 + 24  # each weight is stacked with the others


@pytest.mark.parametrize("act_order", [False, True])
def test_the_factors_of_several_weights_are_waited_for_once(act_order: bool):
    statistics = [InputStatistics(WIDTH, hessian=True) for _ in range(16)]
    with Launches(number=1) as counted:
        for one in statistics:
            one.add(torch.empty(1, 8, WIDTH, device="meta"))
        before = counted.operations.total()
        InputStatistics.factors(statistics, act_order=act_order)
    assert counted.operations["_linalg_cholesky_ex"] + counted.operations["linalg_cholesky_ex"] == 1
    assert counted.synchronisations.total() <= 2  # are the sums finite, are the factors
    assert counted.operations.total() - before <= 16 * (23 if act_order else 17) + 24


@pytest.mark.parametrize("text", ["gptq@4b", "gptq@4b-g32", "sparsegpt@2:4", "sparsegpt@0.5", "sparsegpt@16:32+4b"])
def test_the_plain_loop_waits_for_nothing_either(text: str):
    with Launches() as counted:
        compressed(parse_recipe(text), width=256)  # two blocks of columns, each of which is many operations
    assert not counted.synchronisations


@pytest.mark.parametrize("text", ["wanda@0.5", "wanda@2:4", "wanda@16:32", "magnitude@0.5", "magnitude@2:4"])
def test_masks_wait_for_nothing(text: str):
    with Launches() as counted:
        compressed(parse_recipe(text))
    assert not counted.synchronisations
    assert counted.operations.total() <= 32


def recorded(statistics: InputStatistics, batches: int) -> Launches:
    with Launches() as counted:
        for _ in range(batches):
            statistics.add(torch.empty(2, 100, statistics.width, dtype=torch.bfloat16, device="meta"))
    return counted


@pytest.mark.parametrize("hessian", [True, False])
def test_inputs_are_checked_once_and_not_in_each_batch(hessian: bool):
    statistics = [InputStatistics(width, hessian=hessian) for width in (64, 96)]
    for one in statistics:
        assert not recorded(one, 5).synchronisations
    with Launches(number=1) as counted:  # all are finite
        InputStatistics.check_finite(statistics)
        for one in statistics:
            one.mean_square()
    assert counted.synchronisations.total() == 1


def test_the_error_of_a_layer_is_read_once():
    weight: Tensor = torch.empty(5000, 64, device="meta")
    with Launches() as counted:
        relative_output_error(weight, weight, torch.empty(128, 64, device="meta"))
    assert counted.synchronisations.total() == 1


def test_codes_are_compared_with_their_weight_where_it_is():
    """A large weight takes a few pieces, and one wait for all of them."""
    rows, columns, group = 8192, 4096, 128
    codes = Codes(
        codes=torch.empty(rows, columns, dtype=torch.uint8, device="meta"),
        scale=torch.empty(rows, columns // group, device="meta"),
        zero=torch.empty(rows, columns // group, dtype=torch.uint8, device="meta"),
        bits=4,
        group=group,
        symmetric=False,
    )
    with Launches(number=1) as counted:
        assert gives(codes, torch.empty(rows, columns, dtype=torch.bfloat16, device="meta"))
    assert counted.synchronisations == {"_local_scalar_dense": 1}
    assert counted.operations.total() <= 16 * (rows * columns / VALUES_AT_ONCE_ON_A_GPU + 1), counted.operations


def test_the_count_sees_what_waits():
    """What makes the tests above able to fail."""
    values = torch.empty(4, 4, device="meta")
    with Launches() as counted:
        assert float(values.sum()) == 0
        assert bool((values > 0).any()) is False
        assert values.cpu().tolist() == [[0.0] * 4] * 4
        values.view(16).add_(1)
    assert counted.synchronisations == {"_local_scalar_dense": 2, "_to_copy": 1}
    assert counted.operations == {"sum": 1, "gt": 1, "any": 1, "add_": 1}
