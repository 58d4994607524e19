"""Caches in buffers: which networks allow it, and that cutting, moving and joining keeps every number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmkick.models.engine.kv_cache import (
    GROWTH,
    PreallocatedLayer,
    can_reuse_cache,
    empty_cache,
    join_caches,
    repeat_prefix,
    reserve,
    rotary_limit,
)
from toy import toy_model


@pytest.mark.parametrize(
    ("architecture", "config", "columns", "expected"),
    [
        ("llama", {}, 10_000, True),
        ("gpt2", {}, 10_000, True),
        ("mistral", {"sliding_window": 12}, 10_000, True),
        ("gemma3", {"sliding_window": 12}, 10_000, True),
        ("gpt_neo", {"window_size": 12}, 10_000, True),
        ("mpt", {}, 1, False),  # takes no positions
        ("mamba", {}, 1, False),
        ("lfm2", {}, 1, False),
        ("minimax", {}, 1, False),
    ],
)
def test_which_caches_can_be_reused(architecture: str, config: dict[str, Any], columns: int, *, expected: bool):
    assert can_reuse_cache(toy_model(architecture, **config).network, columns) is expected


def test_recurrent_states_are_never_cut():
    network = toy_model().network
    network._is_stateful = True
    assert not can_reuse_cache(network, 1)


def test_chunks_are_reused_only_within_the_first():
    network = toy_model().network
    network.config.layer_types = ["chunked_attention"] * 3
    network.config.attention_chunk_size = 12
    assert can_reuse_cache(network, 12)
    assert not can_reuse_cache(network, 13)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, float("inf")),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, float("inf")),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 256),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 24}, 24),
    ],
)
def test_rotary_positions_that_stretch(rope: dict[str, Any], limit: float):
    network = toy_model(rope_parameters=rope).network
    assert rotary_limit(network) == limit
    assert can_reuse_cache(network, 24)
    assert can_reuse_cache(network, 257) is (limit == float("inf"))


def filled(rows: int, columns: int, *, seed: int = 0, layers: int = 2) -> Any:
    """A cache of random numbers, (rows, 2 heads, columns, 3)."""
    generator, cache = torch.Generator().manual_seed(seed), empty_cache()
    for index in range(layers):
        keys, values = (torch.randn(rows, 2, columns, 3, generator=generator) for _ in range(2))
        cache.update(keys, values, index)
    return cache


def states(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def test_columns_are_appended_as_by_concatenation():
    generator = torch.Generator().manual_seed(0)
    layer = PreallocatedLayer()
    whole = [torch.empty(2, 2, 0, 3), torch.empty(2, 2, 0, 3)]
    for count in (4, 1, 1, GROWTH + 5, 1, 3):
        new = [torch.randn(2, 2, count, 3, generator=generator) for _ in range(2)]
        whole = [torch.cat([old, one], dim=2) for old, one in zip(whole, new, strict=True)]
        found = layer.update(*new)
        assert layer.get_seq_length() == whole[0].shape[2]
        for one, expected in zip((*found, layer.keys, layer.values), whole * 2, strict=True):
            assert torch.equal(one, expected)


def test_appending_seldom_copies():
    layer = PreallocatedLayer()
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    places = set()
    for _ in range(2 * GROWTH):
        layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 3


def test_within_the_room_that_is_reserved_nothing_moves():
    cache, usual = filled(2, 4), filled(2, 4)
    cache.layers.append(PreallocatedLayer())  # one that borrows another's keys
    reserve(cache, 4 + 3 * GROWTH)
    reserve(cache, 6)  # there is room already
    assert all(torch.equal(one, other) for one, other in zip(states(cache)[:4], states(usual), strict=True))
    places = {tensor.data_ptr() for tensor in states(cache)[:4]}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3 * GROWTH):
        new = torch.randn(2, 2, 1, 3, generator=generator)
        for one in (cache, usual):
            one.update(new, new + 1, 0)
            one.update(new - 1, new, 1)
    assert {tensor.data_ptr() for tensor in states(cache)[:4]} == places
    assert all(torch.equal(one, other) for one, other in zip(states(cache)[:4], states(usual), strict=True))


@pytest.mark.parametrize("shifts", [[0, 0, 0], [0, 2, 9]])
def test_a_prefix_moves_right(shifts: list[int]):
    prefix = filled(1, 6)
    before = [one.clone() for one in states(prefix)]
    copy = repeat_prefix(prefix, torch.tensor(shifts), room=3)
    for one, original in zip(states(copy), before, strict=True):
        assert one.shape == (3, 2, 6, 3)
        for row, shift in enumerate(shifts):
            assert torch.equal(one[row, :, shift:], original[0, :, : max(0, 6 - shift)])
        assert bool(torch.isfinite(one).all())
    copy.update(torch.ones(3, 2, 1, 3), torch.ones(3, 2, 1, 3), 0)
    assert all(torch.equal(one, original) for one, original in zip(states(prefix), before, strict=True))


def test_rows_of_several_caches_end_in_one_column():
    wide, narrow = filled(3, 9), filled(2, 4, seed=1)
    both = join_caches([wide, narrow], [torch.tensor([2, 0]), torch.tensor([1])], 7, room=2)
    for one, left, right in zip(states(both), states(wide), states(narrow), strict=True):
        assert one.shape == (3, 2, 7, 3)
        assert torch.equal(one[0], left[2, :, 2:])
        assert torch.equal(one[1], left[0, :, 2:])
        assert torch.equal(one[2, :, 3:], right[1])
        assert bool((one[2, :, :3] == 0).all())


def test_a_layer_that_borrows_anothers_keys_stays_empty():
    cache = filled(2, 4)
    cache.layers.append(PreallocatedLayer())
    copy = join_caches([cache], [torch.tensor([1])], 4)
    assert [layer.is_initialized for layer in copy.layers] == [True, True, False]
