"""Bits per byte: a ratio of weighted means, against the obvious computation and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from llmkick.errors import DataError
from llmkick.statistics import compare_bits_per_byte

RNG = np.random.default_rng(5)
DENSE = RNG.uniform(0.6, 1.4, 40)
SIZES = RNG.integers(1500, 2500, 40).astype(float)


def named(values: np.ndarray) -> dict[str, float]:
    return {f"s{index}": float(value) for index, value in enumerate(values)}


def test_both_means_are_over_bytes():
    worse = DENSE * 1.1 + 0.01
    found = compare_bits_per_byte(named(DENSE), named(worse), named(SIZES), task="t", recipe="r", seeds=[])
    assert found.dense == pytest.approx((DENSE * SIZES).sum() / SIZES.sum())
    assert found.compressed == pytest.approx((worse * SIZES).sum() / SIZES.sum())
    assert found.relative_increase == pytest.approx(found.compressed / found.dense - 1)
    assert found.outcome == "beyond margin"
    assert (found.task, found.recipe, found.n) == ("t", "r", 40)


def test_a_constant_factor_is_known_exactly():
    found = compare_bits_per_byte(named(DENSE), named(DENSE * 1.02), named(SIZES))
    assert found.interval == pytest.approx((0.02, 0.02), abs=1e-6)
    assert found.outcome == "within margin"


def test_the_same_model_has_lost_nothing():
    found = compare_bits_per_byte(named(DENSE), named(DENSE))
    assert (found.relative_increase, found.outcome) == (0.0, "within margin")


def test_each_bound_misses_the_ratio_about_as_often_as_it_says():
    rng, below, above, rounds = np.random.default_rng(11), 0, 0, 400
    for _ in range(rounds):
        dense = rng.gamma(20, 0.05, 30)
        other = dense * 1.04 + rng.normal(0, 0.03, 30)
        found = compare_bits_per_byte(list(dense), list(other))
        assert found.interval is not None
        below += found.interval[1] < 0.04
        above += found.interval[0] > 0.04
    most = 0.05 + 3 * (0.05 * 0.95 / rounds) ** 0.5
    assert below / rounds <= most
    assert above / rounds <= most
    assert below + above >= 0.05 * rounds


def test_one_segment_has_no_interval():
    found = compare_bits_per_byte({"s": 1.0}, {"s": 1.2})
    assert (found.interval, found.outcome) == (None, "undecided")


@pytest.mark.parametrize(
    ("dense", "other", "message"),
    [
        ({"a": 1.0, "b": None}, {"a": 1.0, "b": 1.0}, "a loss for every segment"),
        ({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, "must be positive"),
        ({"a": 1.0}, {"b": 1.0}, "missing 'a'"),
    ],
)
def test_what_has_no_comparison(dense: dict[str, float | None], other: dict[str, float | None], message: str):
    with pytest.raises(DataError, match=message):
        compare_bits_per_byte(dense, other)
