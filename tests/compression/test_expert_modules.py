"""Experts that are modules of their own: solved at once, calibrated in full, and missed only where all are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from expert_modules import DEAF, HEARD, NEARLY_DEAF, toy_mixture
from llmkick.compression.kernels import columns
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk import batches, recipe_output, solved_layer
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.solved_layer import solved_at_once
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

RECIPES = ("magnitude@0.5", "magnitude@2:4", "wanda@0.5", "wanda@2:4", "sparsegpt@0.5", "sparsegpt@2:4",
    "sparsegpt@2:4+4b-g8", "rtn@4b-g8", "gptq@4b-g8", "gptq@4b-g8-act", "wanda@0.5+gptq@4b", "wanda@2:4+reconstruct",
    "gptq@4b-g8+reconstruct", "wanda@0.5+eora-r2")  # fmt: skip
WINDOWS = np.random.default_rng(0).integers(0, 284, (4, 24))
GOES_TO_THE_LAST = 0  # a token that the first block sends to few experts, the last of them among these
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Solves experts at once from now on, as on a GPU; returns the sizes of the groups."""
    monkeypatch.setattr(columns, "is_compiled_for", lambda _device: False)
    sizes: list[int] = []
    solve = recipe_output.compress_alike

    def counted(weights: list[Tensor], *arguments: object, **options: object) -> object:
        sizes.append(len(weights))
        return solve(weights, *arguments, **options)  # type: ignore[arg-type]

    def begin() -> list[int]:
        monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
        monkeypatch.setattr(recipe_output, "compress_alike", counted)
        return sizes

    return begin


def compressed(text: str, **settings: bool) -> tuple[TransformersModel, CompressionReport]:
    return compress(toy_mixture(is_uneven=True), text, calibration=WINDOWS, **settings)


@pytest.mark.parametrize("text", RECIPES)
def test_a_list_of_experts_solved_at_once_is_that_of_one_by_one(together: Callable[[], list[int]], text: str):
    alone, report = compressed(text, propagate=False)
    sizes = together()
    at_once, report_at_once = compressed(text, propagate=False)
    # All six of each projection of three blocks, or five of them that are calibrated.
    assert sizes == [5 if parse_recipe(text).needs_calibration else 6] * 9
    assert [layer.name for layer in report_at_once.layers] == [layer.name for layer in report.layers]
    assert report_at_once.warnings == report.warnings
    assert report_at_once.stored_bytes == report.stored_bytes
    for one, other in zip(report.layers, report_at_once.layers, strict=True):
        assert (other.damping, other.tokens) == (one.damping, one.tokens)
        assert other.realised_sparsity == one.realised_sparsity
        assert (other.relative_output_error is None) == (one.relative_output_error is None)
        errors = [layer.relative_output_error or 0.0 for layer in (one, other)]
        assert errors[1] == pytest.approx(errors[0], rel=0.02, abs=1e-6)
    for block, same in zip(decoder_blocks(alone.network), decoder_blocks(at_once.network), strict=True):
        for layer, other in zip(block.layers, same.layers, strict=True):
            # Matrix products of several weights at once may round in another way, which moves single weights of a grid.
            assert ((layer.weight - other.weight).abs() > 1e-4).float().mean() < 0.02, layer.name


def test_what_is_said_of_experts_with_few_tokens():
    dense = toy_mixture(is_uneven=True)
    found, report = compressed("wanda@0.5")
    for index in range(3):
        experts = f"model.layers.{index}.mlp.experts"
        for name in PROJECTIONS:
            assert f"left dense: {experts}.{DEAF}.{name} saw no calibration token" in report.warnings
            few = f"few tokens: {experts}.{NEARLY_DEAF}.{name} was calibrated on {HEARD} tokens"
            assert few in report.warnings
            place = f"{experts}.{DEAF}.{name}.weight"
            assert torch.equal(found.network.get_parameter(place), dense.network.get_parameter(place))
    assert compress(dense, "magnitude@0.5", calibration=WINDOWS)[1].warnings == ()


@pytest.mark.parametrize("text", ["wanda@0.5", "gptq@4b-g8"])
@pytest.mark.parametrize("propagate", [True, False])
def test_experts_of_a_list_get_the_weights_of_those_in_one_parameter(
    monkeypatch: pytest.MonkeyPatch, text: str, propagate: bool
):
    """The same function, so the same inputs of each expert, in every block and batch, in whatever order they run."""
    monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", WINDOWS.shape[1])
    windows = np.concatenate([np.full((1, WINDOWS.shape[1]), GOES_TO_THE_LAST), WINDOWS])
    stacked, report = compress(
        toy_model("mixtral", num_local_experts=6), text, calibration=windows, propagate=propagate
    )
    listed, report_of_list = compress(toy_mixture(), text, calibration=windows, propagate=propagate)
    tokens = {layer.name: layer.tokens for layer in report.layers}
    tokens_of_list = {layer.name: layer.tokens for layer in report_of_list.layers}
    for index in range(3):
        one, other = stacked.network.model.layers[index].mlp.experts, listed.network.model.layers[index].mlp.experts
        for number in range(6):
            name = f"model.layers.{index}.mlp.experts"
            assert tokens_of_list[f"{name}.{number}.up_proj"] == tokens[f"{name}.gate_up_proj.{number}"]
            assert tokens_of_list[f"{name}.{number}.down_proj"] == tokens[f"{name}.down_proj.{number}"]
            gate_up = torch.cat([other[number].gate_proj.weight, other[number].up_proj.weight])
            assert ((gate_up - one.gate_up_proj[number]).abs() > 1e-3).float().mean() < 0.02
            assert ((other[number].down_proj.weight - one.down_proj[number]).abs() > 1e-3).float().mean() < 0.02


def test_experts_are_solved_layer_by_layer_as_many_as_fit(monkeypatch: pytest.MonkeyPatch):
    """So that the factor which gate and up of an expert share is freed before the next experts have theirs."""
    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
    (block, *_) = decoder_blocks(toy_mixture(4).network)
    names = [layer.name.removeprefix(f"{block.name}.") for layer in block.layers]
    attention, mixture = list(range(4)), list(range(4, 16))
    assert [names[place] for place in mixture[:3]] == [f"mlp.experts.0.{name}" for name in PROJECTIONS]
    groups = list(solved_at_once(block.layers, range(16)))
    assert groups == [*([place] for place in attention), [4, 7, 10, 13], [5, 8, 11, 14], [6, 9, 12, 15]]
    width, rows = 32, 16  # of the wider layer, down_proj
    copies = solved_layer.FACTOR_COPIES * width**2 + solved_layer.WEIGHT_COPIES * rows * width
    monkeypatch.setattr(solved_layer, "AT_ONCE_BYTES", 2 * 4 * copies)
    assert list(solved_at_once(block.layers, mixture)) == [[4, 7], [5, 8], [6, 9], [10, 13], [11, 14], [12, 15]]
    assert list(solved_at_once(block.layers, [0, 5, 8, 9, 15])) == [[0], [5, 8], [9, 15]]
    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: False)
    assert list(solved_at_once(block.layers, range(16))) == [[place] for place in range(16)]


def test_only_equal_layers_of_experts_are_solved_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
    network = toy_mixture(4).network
    experts = network.model.layers[0].mlp.experts
    experts[1].down_proj = torch.nn.Linear(32, 16).to(torch.bfloat16)
    experts[2].down_proj = torch.nn.Linear(24, 16)
    block: Block = decoder_blocks(network)[0]
    assert list(solved_at_once(block.layers, [6, 9, 12, 15])) == [[6, 15], [9], [12]]
    shared: list[LinearLayer] = [
        replace(layer, twins=(layer,)) if place == 7 else layer for place, layer in enumerate(block.layers)
    ]
    assert list(solved_at_once(shared, [4, 7, 10, 13])) == [[4, 10, 13], [7]]
