"""Experts that are solved at once get the weights that they get one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkick.compression.kernels import columns, hessian
from llmkick.compression.kernels.factor import Unfactored, factors_together
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.registry import METHODS, parse_recipe
from llmkick.compression.walk import recipe_output, solved_layer
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.solved_layer import solved_at_once
from llmkick.compression.walk.weight import compress_alike, compress_with_statistics
from llmkick.errors import NumericalError
from toy import toy_model

RECIPES = ("wanda@0.5", "wanda@2:4", "sparsegpt@0.5", "sparsegpt@2:4+4b-g8", "gptq@4b", "gptq@3b-g8", "gptq@4b-g8-act",
    "gptq@4b-g8-static", "wanda@0.5+gptq@4b", "rtn@4b-g8", "magnitude@0.5+rtn@3b")  # fmt: skip


def problems(count: int, rows: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(count)
    weights = [torch.randn(rows, width, generator=generator) for _ in range(count)]
    mixing = [torch.eye(width) + torch.randn(width, width, generator=generator) / 8 for _ in range(count)]
    inputs = [torch.randn(1, 60 + 40 * number, width, generator=generator) @ mixing[number] for number in range(count)]
    inputs[0][..., 5] = 0  # dead in one of them
    return weights, inputs


def statistics_of(inputs: list[Tensor]) -> list[InputStatistics]:
    statistics = [InputStatistics(rows.shape[2], hessian=True) for rows in inputs]
    for own, rows in zip(statistics, inputs, strict=True):
        own.add(rows)
    return statistics


@pytest.mark.parametrize("text", RECIPES)
def test_several_weights_at_once_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(columns, "is_compiled_for", lambda _device: False)  # the loop of a GPU for both
    weights, inputs = problems(4, 12, 136)
    recipe, names = parse_recipe(text), list("abcd")
    together = compress_alike(weights, statistics_of(inputs), recipe, names)
    for number, (weight, own) in enumerate(zip(weights, statistics_of(inputs), strict=True)):
        alone = compress_with_statistics(weight, own, recipe)
        found = together[number]
        # Matrix products of several weights at once may round in another way, which moves single weights of a grid.
        assert ((found.weight - alone.weight).abs() > 1e-4).float().mean() < 0.002
        assert found.damping == alone.damping
        assert (found.grid is None) == (alone.grid is None)
        if found.grid is not None and alone.grid is not None and found.codes is not None and alone.codes is not None:
            assert found.grid.scale.shape == alone.grid.scale.shape
            assert torch.allclose(found.grid.scale, alone.grid.scale, rtol=1e-4)
            assert (found.codes != alone.codes).float().mean() < 0.002


@pytest.mark.parametrize("act_order", [False, True])
def test_factors_of_several_at_once_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch, act_order: bool):
    _, inputs = problems(4, 12, 72)
    inputs[2] = torch.cat([inputs[2][:, :20], 3e4 * inputs[2][:, :1]], dim=1)  # nearly singular: damped more
    expected = [own.factor(act_order=act_order) for own in statistics_of(inputs)]
    monkeypatch.setattr(hessian, "is_checked_at_once", lambda _device: False)  # as on a GPU
    statistics = statistics_of(inputs)
    kept = statistics[1].factor(act_order=act_order)
    calls: list[int] = []
    together = hessian.factors_together
    monkeypatch.setattr(hessian, "factors_together", lambda some: calls.append(len(some)) or together(some))
    found = InputStatistics.factors([*statistics, statistics[0]], act_order=act_order)
    assert calls == [3]  # one has its factor, one comes twice
    assert found[1] is kept
    assert found[4] is found[0]
    assert found[0] is statistics[0].factor(act_order=act_order)
    for one, other in zip(found, expected, strict=False):
        assert one.damping == other.damping
        assert torch.equal(one.dead, other.dead)
        assert torch.allclose(one.unit, other.unit, rtol=1e-4, atol=1e-5)
        assert torch.allclose(one.size, other.size, rtol=1e-4)
        assert (one.order is None) == (not act_order)
        assert one.order is None or torch.equal(one.order, other.order)


def test_a_hessian_that_needs_more_damping_gets_it_in_company():
    good = torch.eye(3)
    bad = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # not positive definite below 5
    found = factors_together([Unfactored.of(good), Unfactored.of(bad, name="bad"), Unfactored.of(good)])
    assert [one.damping for one in found] == pytest.approx([0.01, 10.0, 0.01])
    bad[0, 1] = bad[1, 0] = torch.nan
    with pytest.raises(NumericalError, match="bad: the Hessian holds NaN"):
        factors_together([Unfactored.of(good), Unfactored.of(bad, name="bad")])


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "llama4"])
@pytest.mark.parametrize("text", ["wanda@2:4", "sparsegpt@0.5", "gptq@4b-g8"])
def test_a_mixture_solved_at_once_is_that_of_one_by_one(monkeypatch: pytest.MonkeyPatch, architecture: str, text: str):
    monkeypatch.setattr(columns, "is_compiled_for", lambda _device: False)
    windows = np.random.default_rng(0).integers(0, 284, (2, 12))
    alone, report = compress(toy_model(architecture), text, calibration=windows, propagate=False)
    sizes: list[int] = []
    solve = recipe_output.compress_alike

    def counted(weights: list[Tensor], *arguments: object, **options: object) -> object:
        sizes.append(len(weights))
        return solve(weights, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
    monkeypatch.setattr(recipe_output, "compress_alike", counted)
    together, report_together = compress(toy_model(architecture), text, calibration=windows, propagate=False)
    assert max(sizes) > 1
    assert [layer.name for layer in report_together.layers] == [layer.name for layer in report.layers]
    assert report_together.warnings == report.warnings
    pairs = zip(decoder_blocks(alone.network), decoder_blocks(together.network), strict=True)
    for block, other in pairs:
        for layer, same in zip(block.layers, other.layers, strict=True):
            assert ((layer.weight - same.weight).abs() > 1e-4).float().mean() < 0.02, layer.name


def test_on_a_cpu_each_layer_is_solved_alone():
    (block, *_) = decoder_blocks(toy_model("mixtral").network)
    assert list(solved_at_once(block.layers, [0, 2, 5])) == [[0], [2], [5]]


def test_only_experts_of_one_parameter_are_solved_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
    (block, *_) = decoder_blocks(toy_model("mixtral").network)
    places = list(range(len(block.layers)))
    groups = list(solved_at_once(block.layers, places))
    assert [place for group in groups for place in group] == places
    for group in groups:
        layers = [block.layers[place] for place in group]
        assert len({(id(layer.module), layer.parameter) for layer in layers}) == 1
        assert len(group) == 1 or all(layer.form == "expert" for layer in layers)
    most = max(map(len, groups))
    assert most > 2
    rows, width = max((block.layers[group[0]].weight.shape for group in groups if len(group) == most), key=sum)
    copies = solved_layer.FACTOR_COPIES * width**2 + solved_layer.WEIGHT_COPIES * rows * width
    monkeypatch.setattr(solved_layer, "AT_ONCE_BYTES", 2 * 4 * copies)
    assert max(map(len, solved_at_once(block.layers, places))) < most


def test_an_error_names_its_expert():
    weights, inputs = problems(3, 4, 8)
    weights[1][0, 0] = torch.nan
    with pytest.raises(NumericalError, match="expert 1: the weight holds NaN"):
        compress_alike(weights, statistics_of(inputs), parse_recipe("gptq@4b"), [f"expert {n}" for n in range(3)])


def test_methods_with_statistics_solve_alike():
    assert {name for name, method in METHODS.items() if method.kernel_alike} == {"wanda", "sparsegpt", "gptq"}
