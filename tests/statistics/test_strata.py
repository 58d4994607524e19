"""Groups as declared: fixed strata leave items independent, in a comparison and when stopping; clusters do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from llmkick.errors import DataError
from llmkick.statistics import EarlyStop, compare, order_items
from llmkick.statistics.verdict import PairedScores, loss_test

SUBJECTS, ITEMS, ACCURACY = 57, 14_042, 0.45
LABELS = np.arange(ITEMS) % SUBJECTS
SIZES = np.bincount(LABELS)


def rates(seed: int = 0) -> np.ndarray:
    """What each of 57 fixed subjects loses: 3 % over all items, with a standard deviation of 3 points."""
    loss = np.random.default_rng(seed).normal(0, 1, SUBJECTS)
    loss -= np.average(loss, weights=SIZES)
    return 0.03 + 0.03 * loss / math.sqrt(np.average(loss**2, weights=SIZES))


RATES = rates()
GAINED = 0.085  # of the items; so many more are lost that the net loss is that of the subject


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    dense = rng.random(ITEMS) < ACCURACY
    lost = rng.random(ITEMS) < (GAINED + ACCURACY * RATES[LABELS]) / ACCURACY
    gained = rng.random(ITEMS) < GAINED / (1 - ACCURACY)
    return dense * 1.0, np.where(dense, ~lost, gained) * 1.0


def stratified_power(alpha: float) -> float:
    """Probability that the stratified z test proves a loss below 5 %: variance within subjects only."""
    lost = GAINED + ACCURACY * RATES
    mean = ACCURACY * (0.05 - RATES)
    square = 0.05**2 * (ACCURACY - lost) + 0.95**2 * lost + GAINED
    variance = np.average(square - mean**2, weights=SIZES) / ITEMS
    return float(stats.norm.cdf(np.average(mean, weights=SIZES) / math.sqrt(variance) - stats.norm.isf(alpha)))


def test_fixed_subjects_match_as_often_as_stratified_theory_says() -> None:
    """3 % lost of 57 subjects that differ: proven on all items in about as many draws as theory says."""
    rng, draws, matching, clustered = np.random.default_rng(1), 300, 0, 0
    for _ in range(draws):
        dense, compressed = draw(rng)
        scores = PairedScores(dense=dense, compressed=compressed[None], cluster=np.arange(ITEMS), low=0, high=1)
        matching += loss_test(scores, 0.05).p_above < 0.05
        drawn = PairedScores(dense=dense, compressed=compressed[None], cluster=LABELS, low=0, high=1)
        clustered += loss_test(drawn, 0.05).p_above < 0.05
    theory = stratified_power(0.05)
    assert 0.6 < theory < 0.95
    assert matching / draws == pytest.approx(theory, abs=0.03 + 2 * math.sqrt(theory * (1 - theory) / draws))
    # As drawn subjects they would be fewer: they claim more.
    assert clustered < matching - 0.05 * draws


@pytest.mark.parametrize("draws", [10, pytest.param(24, marks=pytest.mark.slow)])
def test_stopping_matches_as_often_as_all_items(draws: int) -> None:
    """The last test has most of alpha, so its theory is the least; bets on the way add some."""
    ids = [f"q{number}" for number in range(ITEMS)]
    strata = dict(zip(ids, LABELS.tolist(), strict=True))
    rng, matching = np.random.default_rng(2), 0
    for seed in range(draws):
        dense, compressed = (dict(zip(ids, scores.tolist(), strict=True)) for scores in draw(rng))
        # Few looks: what is looked at more often costs time, and no power.
        rule = EarlyStop(order_items(ids, strata=strata, seed=seed, look=1000))
        while rule.batch is not None:
            rule.feed(dense, compressed)
        matching += rule.state.outcome == "matching"
    theory = stratified_power(0.035)
    assert matching / draws == pytest.approx(theory, abs=0.05 + 2 * math.sqrt(theory * (1 - theory) / draws))


def test_compare_takes_the_declaration() -> None:
    """Strata change no number of the test, clusters do."""
    dense, compressed = draw(np.random.default_rng(3))
    plain = compare(dense, compressed, explain=False)
    fixed = compare(dense, compressed, strata=LABELS, explain=False)
    drawn = compare(dense, compressed, clusters=LABELS, explain=False)
    assert (fixed.p_matching, fixed.interval, fixed.clusters) == (plain.p_matching, plain.interval, ITEMS)
    assert (plain.strata, fixed.strata, drawn.strata) == (None, SUBJECTS, None)
    assert drawn.clusters == SUBJECTS
    assert drawn.interval is not None
    assert fixed.interval is not None
    assert drawn.interval[1] - drawn.interval[0] > 1.02 * (fixed.interval[1] - fixed.interval[0])
    both = compare(dense, compressed, strata=LABELS, clusters=np.arange(ITEMS) // 4, explain=False)
    assert (both.clusters, both.strata) == (math.ceil(ITEMS / 4), SUBJECTS)


def test_strata_that_lack_an_item_are_refused() -> None:
    with pytest.raises(DataError, match="items without a stratum: 'b'"):
        compare({"a": 1, "b": 0}, {"a": 1, "b": 0}, strata={"a": "x"})
    with pytest.raises(DataError, match="1 stratum labels for 2 items"):
        compare([1, 0], [1, 0], strata=["x"])
