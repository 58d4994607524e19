"""Evidence for and against: of one statement, of all and of some, and of differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from llmkick.claims.evidence import (
    NOT_ASKED,
    UNKNOWN,
    Estimate,
    Evidence,
    above,
    below,
    difference_of,
    does_not_match,
    every,
    matches,
    opposite,
    rise_of,
    some,
    unasked,
)
from llmkick.statistics import compare, compare_perplexity

ALPHA = 0.025
Z = float(stats.norm.ppf(1 - ALPHA))


def estimate(value: float | None, low: float, high: float) -> Estimate:
    """A quantity with its standard errors below and above."""
    interval = None if value is None else (value - Z * low, value + Z * high)
    return Estimate(value=value, interval=interval, alpha=ALPHA)


def above_zero(quantity: Estimate) -> Evidence:
    return above(quantity, 0.0, "is above", "run", "quantity")


@pytest.mark.parametrize(("value", "error"), [(1.0, 0.5), (-1.0, 0.5), (0.3, 1.0), (0.0, 1.0)])
def test_a_bound_is_tested_like_a_normal_mean(value: float, error: float) -> None:
    evidence = above_zero(estimate(value, error, error))
    assert evidence.p_for == pytest.approx(stats.norm.sf(value / error))
    assert evidence.p_against == pytest.approx(stats.norm.cdf(value / error))


def test_each_side_has_its_own_error() -> None:
    """The lower end stands for the error that matters to "above", the upper end for that to "below"."""
    evidence = above_zero(estimate(1.0, 0.5, 2.0))
    assert evidence.p_for == pytest.approx(stats.norm.sf(1.0 / 0.5))
    assert evidence.p_against == pytest.approx(stats.norm.cdf(1.0 / 2.0))


@pytest.mark.parametrize("bound", [0.4, 1.7])
def test_the_interval_touches_the_bound_at_alpha(bound: float) -> None:
    evidence = above(Estimate(value=1.0, interval=(0.4, 1.7), alpha=ALPHA), bound, "is above", "run", "quantity")
    assert (evidence.p_for if bound < 1 else evidence.p_against) == pytest.approx(ALPHA)


def test_below_is_the_opposite_of_above() -> None:
    quantity = estimate(0.3, 0.2, 0.4)
    first, second = above_zero(quantity), below(quantity, 0.0, "is below", "run", "quantity")
    assert (second.p_for, second.p_against) == (first.p_against, first.p_for)
    assert second.statements[0].text == "is below"
    assert opposite(second, "is above") == first


@pytest.mark.parametrize(("value", "p_for", "p_against"), [(0.1, 0.0, 1.0), (-0.1, 1.0, 0.0), (0.0, 1.0, 1.0)])
def test_a_quantity_without_error_is_on_one_side_or_on_the_bound(value: float, p_for: float, p_against: float) -> None:
    evidence = above_zero(estimate(value, 0.0, 0.0))
    assert (evidence.p_for, evidence.p_against) == (p_for, p_against)


@pytest.mark.parametrize(
    "quantity",
    [
        Estimate(value=None, interval=(0.1, 0.2), alpha=ALPHA),
        Estimate(value=1.0, interval=None, alpha=ALPHA),
        Estimate(value=1.0, interval=(0.5, math.inf), alpha=ALPHA),
        Estimate(value=1.0, interval=(-math.inf, 1.5), alpha=ALPHA),
    ],
)
def test_what_has_no_bounds_decides_nothing(quantity: Estimate) -> None:
    evidence = above_zero(quantity)
    assert (evidence.p_for, evidence.p_against) == (UNKNOWN, UNKNOWN) == (1.0, 1.0)


def test_a_difference_of_independent_estimates() -> None:
    """Symmetric errors add as squares; skewed ones with the opposite side of what is taken away."""
    difference = difference_of(estimate(3.0, 0.3, 0.3), estimate(1.0, 0.4, 0.4))
    assert difference.value == pytest.approx(2.0)
    assert difference.interval == pytest.approx((2.0 - Z * 0.5, 2.0 + Z * 0.5))
    skewed = difference_of(estimate(3.0, 0.3, 3.0), estimate(1.0, 4.0, 0.4))
    assert skewed.interval == pytest.approx((2.0 - Z * 0.5, 2.0 + Z * 5.0))
    assert skewed.alpha == ALPHA


def test_a_difference_from_an_unknown_quantity_is_unknown() -> None:
    known, unknown = estimate(3.0, 0.3, 0.3), estimate(None, 0.0, 0.0)
    unbounded = Estimate(value=1.0, interval=None, alpha=ALPHA)
    nothing = Estimate(value=None, interval=None, alpha=ALPHA)
    assert difference_of(known, unknown) == difference_of(unknown, known) == nothing
    assert difference_of(known, unbounded) == Estimate(value=2.0, interval=None, alpha=ALPHA)
    assert difference_of(unbounded, known) == Estimate(value=-2.0, interval=None, alpha=ALPHA)


def of(text: str, p_for: float, p_against: float) -> Evidence:
    (statement,) = unasked(text, "run", ALPHA).statements
    evidence = unasked(text, "run", ALPHA)
    return Evidence(p_for=p_for, p_against=p_against, statements=(statement,), weakest=evidence.weakest)


def test_all_parts() -> None:
    """For it the weakest part counts, against it the one that fails most clearly, times the number of parts."""
    evidence = every([of("a", 0.01, 0.9), of("b", 0.2, 0.02), of("c", 0.001, 0.5)])
    assert (evidence.p_for, evidence.p_against) == (0.2, pytest.approx(0.06))
    assert [statement.text for statement in evidence.statements] == ["a", "b", "c"]
    assert [statement.text for statement in evidence.weakest] == ["b"]
    assert every([of("a", 0.01, 0.9), of("b", 0.01, 0.8)]).p_against == 1.0


def test_some_parts() -> None:
    """One part that holds is enough, after a correction for their number; against it, all must fail."""
    evidence = some([of("a", 0.01, 0.9), of("b", 0.2, 0.02), of("c", 0.5, 0.03)])
    assert (evidence.p_for, evidence.p_against) == (pytest.approx(0.03), 0.9)
    assert [statement.text for statement in evidence.weakest] == ["a", "b", "c"]
    assert some([of("a", 0.6, 0.1), of("b", 0.9, 0.2)]).p_for == 1.0


def test_a_part_that_was_not_asked_can_show_nothing() -> None:
    evidence = every([of("a", 0.0, 1.0), unasked("b", "model", ALPHA)])
    assert evidence.p_for == UNKNOWN
    assert evidence.statements[-1].quantity == NOT_ASKED
    assert evidence.statements[-1].estimate == Estimate(value=None, interval=None, alpha=ALPHA)


@pytest.mark.parametrize(
    ("verdict", "p", "p_for"),
    [
        ("matching", 0.003, 0.003),
        ("matching", None, 0.0),  # an early stop has no p-value of its own
        ("matching", 0.4, 0.0),
        ("undecided", 0.003, ALPHA),  # missing scores could change what the others show
        ("undecided", 0.4, 0.4),
        ("undecided", None, UNKNOWN),
        ("not matching", 0.4, 0.4),
    ],
)
def test_a_verdict_knows_more_than_its_p_value(verdict: str, p: float | None, p_for: float) -> None:
    scores = {f"item-{number}": float(number % 2) for number in range(40)}
    comparison = compare(scores, scores, task="task", recipe="recipe")
    told = replace(comparison, verdict=verdict, p_matching=p, p_not_matching=p, alpha=ALPHA)
    evidence = matches(told, "run")
    assert evidence.p_for == p_for
    assert evidence.statements[0].text == "recipe matches on task"
    mirrored = {"matching": "not matching", "not matching": "matching"}.get(verdict, verdict)
    assert does_not_match(replace(told, verdict=mirrored), "run").p_for == p_for


def test_a_rise_of_perplexity_is_a_logarithm() -> None:
    dense = [2.0, 2.1, 2.2, 1.9, 2.05, 2.15]
    comparison = compare_perplexity(dense, [x + 0.1 + 0.01 * i for i, x in enumerate(dense)], task="t", recipe="r")
    rise = rise_of(comparison)
    assert rise.value == pytest.approx(math.log1p(comparison.relative_increase))
    assert comparison.interval is not None
    assert rise.interval == pytest.approx(tuple(math.log1p(bound) for bound in comparison.interval))
