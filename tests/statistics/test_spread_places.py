"""A sample from all over: a place in each stretch, and not all of a kind that comes at equal distances."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkick.statistics import spread_places


@given(count=st.integers(0, 500), wanted=st.integers(1, 200))
def test_one_place_in_each_stretch(count: int, wanted: int) -> None:
    places = spread_places(count, wanted)
    assert places == spread_places(count, wanted)
    assert len(places) == min(count, wanted)
    assert places == sorted(set(places))
    if wanted < count:
        assert all(count * k // wanted <= place < count * (k + 1) // wanted for k, place in enumerate(places))


@pytest.mark.parametrize("period", [2, 3, 4, 10])
@pytest.mark.parametrize("stretch", [1, 2, 5])
def test_what_comes_at_equal_distances_is_not_all(period: int, stretch: int) -> None:
    """Even where a stretch is as long as the distance, or a multiple of it."""
    wanted = 600
    places = spread_places(wanted * period * stretch, wanted)
    shares = Counter(place % period for place in places)
    assert all(shares[kind] == pytest.approx(wanted / period, rel=0.5) for kind in range(period))
