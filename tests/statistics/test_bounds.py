"""The bounds never contradict the verdict, each misses the truth in at most alpha, and chance counts for nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.statistics import (
    Comparison,
    Undecided,
    compare,
    compare_bits_per_byte,
    compare_perplexity,
    compare_stopped,
    early_stopped_comparison,
    order_items,
)
from llmkick.statistics.verdict import PairedScores, loss_bounds, loss_test
from speeds import others_slow

Floats = np.ndarray[Any, Any]
DRAWS = 400


def most(draws: int, rate: float = 0.05) -> float:
    """The largest number of errors that a true rate explains: three standard errors above it."""
    return draws * (rate + 3 * math.sqrt(rate * (1 - rate) / draws))


def assert_agree(found: Comparison) -> None:
    """A decided verdict and bounds on one side of the margin are the same."""
    assert found.verdict in ("matching", "not matching", "undecided"), found
    if found.interval is None:
        assert found.verdict != "matching"
        return
    lower, upper = found.interval
    assert lower <= upper
    assert (found.verdict == "matching") == (upper < found.margin), found
    assert (found.verdict == "not matching") == (lower > found.margin), found


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Scores of every kind: right or wrong or graded, with clusters, seeds, chance, from no loss to all."""
    rng = np.random.default_rng(draw(st.integers(0, 10**9)))
    items, seeds = draw(st.integers(2, 150)), draw(st.sampled_from([1, 1, 2, 3]))
    kind = draw(st.sampled_from(["binary", "graded", "even", "copied"]))
    accuracy, loss = draw(st.floats(0.1, 1)), draw(st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3, 1.0]))
    clusters = draw(st.sampled_from([0, 2, 5, 20]))
    groups = np.arange(items) % clusters if clusters else np.arange(items)
    lost = np.clip(loss * (1 + (clusters > 0) * rng.standard_normal(items)[groups]), 0, 1)
    rows = []
    dense = (
        (rng.random(items) < accuracy) * 1.0 if kind == "binary" else rng.beta(4 * accuracy, 4.5 - 4 * accuracy, items)
    )
    for _ in range(seeds):
        if kind == "binary":
            gained = rng.random(items) < draw(st.sampled_from([0.0, 0.05]))
            rows.append(np.where(dense > 0, rng.random(items) >= lost, gained) * 1.0)
        elif kind == "graded":
            rows.append(np.clip(dense * (1 - lost) + 0.1 * rng.standard_normal(items), 0, 1))
        else:
            rows.append(dense * (1 - loss if kind == "even" else 1.0))
    return {
        "dense": dense,
        "compressed": np.array(rows) if seeds > 1 else rows[0],
        "clusters": groups if clusters else None,
        "chance": draw(st.sampled_from([0.0, 0.0, 0.25])),
        "margin": draw(st.sampled_from([0.01, 0.05, 0.2, 0.5])),
        "alpha": draw(st.sampled_from([0.01, 0.05, 0.2])),
    }


class TestAgreement:
    @settings(max_examples=60, deadline=None)
    @given(cases())
    def test_verdict_and_bounds_never_disagree(self, case: dict[str, Any]) -> None:
        dense, compressed = case.pop("dense"), case.pop("compressed")
        found = compare(dense, compressed, same_model=False, explain=False, **case)
        if found.verdict != "no signal":
            assert_agree(found)

    @settings(max_examples=40, deadline=None)
    @given(cases(), st.floats(0, 0.2))
    def test_unscored_items_leave_no_contradiction(self, case: dict[str, Any], share: float) -> None:
        """The bounds are those of scored items; the verdict is theirs, or that the others could change it."""
        rng = np.random.default_rng(0)
        gaps = rng.random(case["dense"].size) < share
        dense = np.where(gaps, None, case.pop("dense")).tolist()
        found = compare(dense, case.pop("compressed"), same_model=False, explain=False, **case)
        if found.verdict not in ("no signal", "incomplete"):
            assert_agree(found)

    @pytest.mark.parametrize("draws", [20, pytest.param(50, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("chance", [0.0, 0.25])
    def test_a_stopped_comparison_agrees_too(
        self, chance: float, whole: bool, draws: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reason = Undecided(reason="few items", more_items=None)  # its simulation is slow, and no part of this
        monkeypatch.setattr(early_stopped_comparison, "explain_undecided", lambda *_, **__: reason)
        rng = np.random.default_rng(int(whole))
        verdicts = set()
        for draw in range(draws):
            items, loss = int(rng.choice([60, 200, 500])), float(rng.choice([0, 0.05, 0.1, 0.4]))
            dense = (rng.random(items) < rng.choice([0.5, 0.9])) * 1.0
            compressed = np.where(rng.random(items) < 0.02, 1 - dense, dense * (rng.random(items) >= loss))
            unscored = rng.random(items) < rng.choice([0, 0, 0.02])
            ids = [f"q{number}" for number in range(items)]
            order = order_items(ids, {i: int(i[1:]) // 4 for i in ids} if whole else None, seed=draw)
            scores = dict(zip(ids, np.where(unscored, None, compressed).tolist(), strict=True))
            found = compare_stopped(order, dict(zip(ids, dense, strict=True)), scores, chance=chance, same_model=False)
            verdicts.add(found.verdict)
            if found.verdict == "incomplete" and found.interval is not None:
                assert found.interval[0] <= found.margin <= found.interval[1]
            elif found.verdict not in ("no signal", "incomplete"):
                assert_agree(found)
        assert verdicts >= {"matching", "not matching", "undecided"}

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10**9), st.integers(2, 60), st.sampled_from([0.0, 0.03, 0.05, 0.2]), st.booleans())
    def test_perplexity_and_its_bounds(self, seed: int, windows: int, increase: float, clustered: bool) -> None:
        rng = np.random.default_rng(seed)
        dense = rng.normal(3, 0.3, windows)
        worse = dense + math.log1p(increase) + rng.choice([0.01, 0.1, 0.5]) * rng.standard_normal(windows)
        groups = np.arange(windows) % max(2, windows // 3) if clustered else None
        for found in (
            compare_perplexity(dense, worse, rng.integers(50, 500, windows), clusters=groups),
            compare_bits_per_byte(np.exp(dense), np.exp(worse), clusters=groups),
        ):
            if found.interval is None:
                assert found.outcome != "within margin"
                continue
            assert found.interval[0] <= found.relative_increase <= found.interval[1]
            assert (found.outcome == "within margin") == (found.interval[1] < found.margin)
            assert (found.outcome == "beyond margin") == (found.interval[0] > found.margin)

    @settings(max_examples=12, deadline=None)
    @given(cases())
    def test_a_larger_margin_undoes_no_match(self, case: dict[str, Any]) -> None:
        """And a smaller one no failure: with the margin, verdicts go from not matching to matching."""
        dense, compressed, margin = case.pop("dense"), case.pop("compressed"), case.pop("margin")
        rank = {"not matching": 0, "undecided": 1, "matching": 2}
        verdicts = [
            compare(dense, compressed, same_model=False, explain=False, margin=float(m), **case).verdict
            for m in [margin, *np.arange(0.02, 0.9, 0.11)]
        ]
        if "no signal" not in verdicts:
            ranks = [rank[verdict] for verdict in verdicts[1:]]
            assert ranks == sorted(ranks)


# Scenarios: what is drawn has the true loss; (dense, compressed, clusters).
Drawn = tuple[Floats, Floats, Floats | None]


def right_or_wrong(rng: np.random.Generator, loss: float) -> Drawn:
    dense = rng.random(250) < 0.7
    lost = rng.random(250) < loss + 0.02
    return dense * 1.0, np.where(dense, ~lost, rng.random(250) < 0.02 * 0.7 / 0.3) * 1.0, None


def graded(rng: np.random.Generator, loss: float) -> Drawn:
    dense = rng.beta(2, 2, 80)
    # The part kept is independent of the score, so the ratio of the means is the mean of the parts.
    return dense, dense * np.clip(1 - loss + 0.3 * (rng.random(80) - 0.5) * min(1.0, loss * 6), 0, 1), None


def passages(rng: np.random.Generator, loss: float) -> Drawn:
    cluster = np.repeat(np.arange(30), 5)
    dense = rng.random(150) < rng.beta(6, 3, 30)[cluster]
    lost = rng.random(150) < rng.beta(10 * loss, 10 * (1 - loss), 30)[cluster]
    return dense * 1.0, dense * ~lost * 1.0, cluster


def seeds(rng: np.random.Generator, loss: float) -> Drawn:
    dense = rng.random(300) < 0.7
    rates = loss + 0.03 * rng.uniform(-1, 1, 4)
    return dense * 1.0, dense * (rng.random((4, 300)) >= rates[:, None]) * 1.0, None


SCENARIOS = [right_or_wrong, graded, passages, seeds]


def scores_of(drawn: Drawn) -> PairedScores:
    dense, compressed, cluster = drawn
    codes = np.arange(dense.size) if cluster is None else cluster
    return PairedScores(dense=dense, compressed=np.atleast_2d(compressed), cluster=codes, low=0.0, high=1.0)


def beyond(scores: PairedScores, truth: float, chance: float = 0.0) -> tuple[bool, bool]:
    """Whether the lower bound is above the truth, and the upper one below it: what the test says about it."""
    test = loss_test(scores, truth, chance)
    return test.p_below < 0.05, test.p_above < 0.05


class TestEachSideHoldsTheTruth:
    @pytest.mark.parametrize("loss", [0.05, 0.2])
    @pytest.mark.parametrize("draw", SCENARIOS, ids=lambda f: f.__name__)
    def test_at_most_alpha_beyond_either_bound(
        self, draw: Callable[[np.random.Generator, float], Drawn], loss: float
    ) -> None:
        rng = np.random.default_rng([7, *draw.__name__.encode(), int(100 * loss)])
        missed = sum(np.array(beyond(scores_of(draw(rng, loss)), loss)) for _ in range(DRAWS))
        assert np.max(missed) <= most(DRAWS)

    @pytest.mark.parametrize("draw", SCENARIOS, ids=lambda f: f.__name__)
    def test_the_bounds_are_where_the_test_turns(self, draw: Callable[[np.random.Generator, float], Drawn]) -> None:
        """For any truth: it is outside the bounds if and only if the test rejects it."""
        rng = np.random.default_rng([8, *draw.__name__.encode()])
        for _ in range(8):
            scores = scores_of(draw(rng, 0.1))
            found = loss_bounds(scores, margin=0.05, alpha=0.05)
            assert found is not None
            for truth in (-0.1, 0.0, 0.05, 0.1, 0.15, 0.3, 0.6):
                assert beyond(scores, truth) == (found[0] > truth, found[1] < truth)

    def test_together_they_hold_it_in_nine_of_ten(self) -> None:
        """And not in nearly all: with many items each bound comes close to its 5 %."""
        rng, missed = np.random.default_rng(1), np.zeros(2)
        for _ in range(600):
            dense = (rng.random(1500) < 0.6) * 1.0
            compressed = np.where(rng.random(1500) < 0.1, 1 - dense, dense)
            # 6 % lost of 60 %, 4 % gained.
            missed += beyond(scores_of((dense, compressed, None)), 1 - 0.58 / 0.6)
        assert missed.max() <= most(600)
        assert missed.min() >= 0.025 * 600

    def test_of_perplexity(self) -> None:
        rng, missed = np.random.default_rng(2), np.zeros(2)
        for _ in range(DRAWS):
            dense = rng.normal(3, 0.3, 40)
            found = compare_perplexity(dense, dense + math.log(1.05) + rng.gumbel(-0.5772 * 0.05, 0.05, 40)).interval
            assert found is not None
            missed += found[0] > 0.05, found[1] < 0.05
        assert missed.max() <= most(DRAWS)


class TestAboveChance:
    def letters(self, items: int, dense: float, compressed: float, seed: int = 0) -> tuple[Floats, Floats]:
        """Letters with these scores: half of those that change are luck in both models."""
        rng = np.random.default_rng(seed)
        # Guesses of both models agree on most items, as those of near copies do.
        right = rng.random(items) < dense
        lost = rng.random(items) < (dense - compressed + 0.02) / dense
        return right * 1.0, np.where(right, ~lost, rng.random(items) < 0.02 / (1 - dense)) * 1.0

    @pytest.mark.parametrize("seed", others_slow(range(5), [0, 1]))
    def test_all_knowledge_lost_is_not_matching_though_the_paper_says_so(self, seed: int) -> None:
        """0.26 → 0.25 of letters: everything that was known is gone, and the plain score keeps 96 %."""
        dense, compressed = self.letters(20_000, 0.26, 0.25, seed)
        found = compare(dense, compressed, chance=0.25)
        assert found.verdict in ("not matching", "no signal")
        assert found.paper_verdict == "matching"
        assert found.raw_drop == pytest.approx(0.04, abs=0.01)
        assert compare(dense, compressed).verdict == "matching"
        order = order_items([f"q{k}" for k in range(20_000)])
        named = [{f"q{k}": float(score) for k, score in enumerate(scores)} for scores in (dense, compressed)]
        stopped = compare_stopped(order, *named, chance=0.25)
        assert stopped.verdict in ("not matching", "no signal")

    @pytest.mark.parametrize("seeds", [8, pytest.param(20, marks=pytest.mark.slow)])
    def test_it_is_shown_with_a_signal(self, seeds: int) -> None:
        verdicts = [compare(*self.letters(20_000, 0.26, 0.25, seed), chance=0.25).verdict for seed in range(seeds)]
        assert verdicts.count("not matching") >= 0.75 * seeds
        assert "matching" not in verdicts

    def test_nothing_lost_matches_above_chance_with_more_items(self) -> None:
        dense, compressed = self.letters(4000, 0.5, 0.5)
        assert compare(dense, compressed, chance=0.25).verdict == "matching"
        assert compare(dense, self.letters(4000, 0.5, 0.49)[1], chance=0.25).verdict != "matching"

    def test_bounds_of_the_part_above_chance(self) -> None:
        rng, missed = np.random.default_rng(3), np.zeros(2)
        for _ in range(DRAWS):
            dense, compressed = self.letters(800, 0.55, 0.52, int(rng.integers(10**9)))
            missed += beyond(scores_of((dense, compressed, None)), 0.1, 0.25)
        assert missed.max() <= most(DRAWS)

    def test_at_chance_there_are_no_bounds(self) -> None:
        scores = PairedScores(
            dense=np.tile([1.0, 0, 0, 0], 50), compressed=np.zeros((1, 200)), cluster=np.arange(200), low=0, high=1
        )
        assert loss_bounds(scores, margin=0.05, alpha=0.05, chance=0.25) is None
        slightly = replace(
            scores, dense=np.where(np.arange(200) == 1, 1.0, scores.dense), compressed=np.roll(scores.dense, 1)[None]
        )
        assert loss_bounds(slightly, margin=0.05, alpha=0.05, chance=0.25) is None
