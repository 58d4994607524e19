"""The compiled loops of packing give what torch gives, which packs on other devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkick.models.checkpoints.bit_streams import binomials, filled_up, rank_patterns
from llmkick.models.checkpoints.compiled_packing import select, select_patterns

PATTERNS = ((1, 2), (2, 4), (4, 8), (3, 5), (1, 1), (7, 16), (5, 32))


@pytest.mark.parametrize(("kept", "of"), PATTERNS)
@pytest.mark.parametrize("fewer", [0, 1])  # groups with fewer non-zeros than N are filled up
def test_patterns_are_those_of_torch(kept: int, of: int, fewer: int):
    generator = torch.Generator().manual_seed(of)
    order = torch.rand(50, of, generator=generator).argsort(1).argsort(1)
    filled = order < kept - fewer
    values = torch.randint(0, 255, (50 * of,), generator=generator, dtype=torch.uint8)
    chosen = select_patterns(filled.flatten().short().numpy(), values.numpy(), kept, binomials(of).numpy())
    places = filled_up(filled, kept)
    assert chosen is not None
    assert places is not None
    assert torch.equal(torch.from_numpy(chosen[0]), rank_patterns(places))
    assert torch.equal(torch.from_numpy(chosen[1]), values[places.flatten()])


def test_a_group_with_more_non_zeros_is_none():
    bits = np.array([0, 1, 1, 0, 1, 1, 1, 0], dtype=np.int16)
    assert select_patterns(bits, bits, 2, binomials(4).numpy()) is None
    assert filled_up(torch.from_numpy(bits != 0).view(2, 4), 2) is None


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_selected_values_are_those_under_the_mask(share: float, dtype: type):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 100, 1001).astype(dtype)
    mask = generator.random(1001) < share
    assert np.array_equal(select(values, mask.view(np.uint8), int(mask.sum())), values[mask])
