"""Streams of few bits: the layout is a promise to whoever reads the files without us."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.models.checkpoints.bit_streams import pack_bits, pattern_bits, rank_patterns, unpack_bits, unrank_patterns


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_bits_survive_at_every_width_and_count(bits: int, count: int, seed: int):
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << bits, count))
    stream = pack_bits(values, bits)
    assert stream.dtype == torch.uint8
    assert stream.numel() == math.ceil(count * bits / 8)
    assert torch.equal(unpack_bits(stream, bits, count).to(torch.int64), values)
    # The layout is a promise to whoever reads the file without us: bits in order, lowest first.
    expected = [int(value) >> place & 1 for value in values for place in range(bits)]
    found = np.unpackbits(stream.numpy(), bitorder="little")
    assert found[: len(expected)].tolist() == expected
    assert not found[len(expected) :].any()


@pytest.mark.parametrize(("kept", "of"), [(1, 2), (2, 4), (4, 8), (1, 4), (3, 4), (5, 10), (1, 1)])
def test_patterns_are_numbered_without_gaps(kept: int, of: int):
    places = list(itertools.combinations(range(of), kept))
    masks = torch.zeros(len(places), of, dtype=torch.bool)
    for row, chosen in enumerate(places):
        masks[row, list(chosen)] = True
    ranks = rank_patterns(masks)
    assert sorted(ranks.tolist()) == list(range(math.comb(of, kept)))
    assert torch.equal(unrank_patterns(ranks, kept, of), masks)
    assert int(ranks.max()).bit_length() == pattern_bits(kept, of)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.data())
def test_wide_patterns_survive(of: int, data: st.DataObject):
    kept = data.draw(st.integers(1, of))
    chosen = data.draw(st.lists(st.permutations(range(of)), min_size=1, max_size=5))
    masks = torch.zeros(len(chosen), of, dtype=torch.bool)
    for row, order in enumerate(chosen):
        masks[row, list(order[:kept])] = True
    assert torch.equal(unrank_patterns(rank_patterns(masks), kept, of), masks)
