"""Zeros and N:M patterns of networks that other tools pruned, against brute force."""

from __future__ import annotations

import pytest
import torch

from llmkick.models.checkpoints.sparsity import GROUPS, Zeros, linear_weights, pattern_of, zeros_of
from toy import toy_model


def pruned(kept: int, group: int, shape: tuple[int, int] = (6, 32), seed: int = 0) -> torch.Tensor:
    """A weight with exactly `kept` of every `group` inputs left."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(shape, generator=generator) + 0.1
    order = torch.rand(shape[0], shape[1] // group, group, generator=generator).argsort(dim=-1)
    return weight * (order < kept).reshape(shape)


def holds(weight: torch.Tensor, kept: int, group: int) -> bool:
    return all(
        sum(1 for value in row[start : start + group] if value != 0) <= kept
        for row in weight.tolist()
        for start in range(0, len(row), group)
    )


@pytest.mark.parametrize(("kept", "group"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (5, 16)])
def test_a_pattern_is_found_and_holds(kept: int, group: int):
    weight = pruned(kept, group)
    assert pattern_of(weight) == f"{kept}:{group}"
    assert holds(weight, kept, group)


@pytest.mark.parametrize("seed", range(20))
def test_the_pattern_found_is_the_tightest_that_holds(seed: int):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(2, 16, generator=generator) * (torch.rand(2, 16, generator=generator) < 0.3)
    holding = [(n / m, m, n) for m in GROUPS for n in range(1, m) if holds(weight, n, m)]
    expected = f"{min(holding)[2]}:{min(holding)[1]}" if holding and bool((weight != 0).any()) else ""
    assert pattern_of(weight) == expected


@pytest.mark.parametrize(
    "weight", [torch.ones(2, 32), torch.zeros(2, 32), torch.eye(3), torch.ones(2, 6) * torch.tensor([1, 1, 1, 0, 1, 1])]
)
def test_no_pattern(weight: torch.Tensor):
    assert pattern_of(weight) in ("", "15:16")
    assert pattern_of(weight[:, :5]) == ""


def test_a_dense_network_has_none():
    zeros = zeros_of(toy_model().network)
    assert zeros == Zeros(count=0, share=0.0, pattern="", pruned_layers=0, layers=3 * 7)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_pruned_network(architecture: str):
    model = toy_model(architecture)
    total = removed = 0
    for weight in linear_weights(model.network):  # (out, in), whatever the module stores
        keep = pruned(2, 4, tuple(weight.shape)) != 0
        weight.mul_(keep)
        total, removed = total + weight.numel(), removed + int((~keep).sum())
    zeros = zeros_of(model.network)
    assert zeros is not None
    assert (zeros.count, zeros.share, zeros.pattern) == (removed, removed / total, "2:4")
    assert zeros.share == 0.5
    assert zeros.pruned_layers == zeros.layers


def test_layers_of_different_patterns_and_of_none():
    model = toy_model()
    first, second = list(linear_weights(model.network))[:2]
    first.mul_(pruned(2, 4, tuple(first.shape)) != 0)
    second.mul_(pruned(1, 2, tuple(second.shape)) != 0)
    zeros = zeros_of(model.network)
    assert zeros is not None
    assert (zeros.pattern, zeros.pruned_layers) == ("mixed", 2)
    third = list(linear_weights(model.network))[2]
    third[1:] = 0  # one row stays whole
    zeros = zeros_of(model.network)
    assert zeros is not None
    assert (zeros.pattern, zeros.pruned_layers) == ("unstructured", 3)


def test_experts_are_weights_too():
    network = toy_model("mixtral").network
    experts = [weight for weight in linear_weights(network) if weight.shape[0] in (16, 32, 64)]
    assert sum(weight.numel() for weight in experts) > 3 * 4 * 3 * 16 * 32 * 0.9
