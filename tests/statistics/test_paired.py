"""Pairing, the numbers of a comparison against scipy and brute force, perplexity and choice agreement."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from llmkick.errors import ConfigError, DataError
from llmkick.statistics import choice_agreement, compare, compare_perplexity, overall_verdict
from llmkick.statistics.verdict import PairedScores, loss_test, where_rejected

binary = st.sampled_from([0.0, 1.0])


def scores_of(right: int, lost: int, gained: int, wrong: int) -> tuple[list[float], list[float]]:
    """Dense and compressed scores with the four counts of a paired 2 × 2 table."""
    dense = [1.0] * (right + lost) + [0.0] * (gained + wrong)
    compressed = [1.0] * right + [0.0] * lost + [1.0] * gained + [0.0] * wrong
    return dense, compressed


class TestPairing:
    def test_by_id_whatever_the_order(self) -> None:
        dense = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
        compressed = {"d": 0.0, "c": 1.0, "b": 1.0, "a": 1.0}
        result = compare(dense, compressed)
        assert (result.gained, result.lost) == (1, 1)
        assert result.compressed == 0.75

    def test_mismatch_names_ids(self) -> None:
        with pytest.raises(DataError, match=r"missing 'b'.*not in dense 'x', 'y', 'z' and 1 more"):
            compare({"a": 1, "b": 0}, {"a": 1, "x": 0, "y": 0, "z": 1, "zz": 1})

    def test_duplicate_ids_are_named(self) -> None:
        with pytest.raises(DataError, match=r"more than once: 'a'"):
            compare([("a", 1.0), ("a", 0.0)], {"a": 1.0})

    def test_pairs_of_id_and_score(self) -> None:
        result = compare([("a", 1.0), ("b", 0.0)], [("b", 1.0), ("a", 1.0)])
        assert (result.gained, result.lost) == (1, 0)

    def test_id_and_position_do_not_mix(self) -> None:
        with pytest.raises(DataError, match="both be by id or both by position"):
            compare({"a": 1.0}, [1.0])

    def test_unequal_lengths(self) -> None:
        with pytest.raises(DataError, match="2 items against 3"):
            compare([1, 0, 1], [1, 0])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, "right"])
    def test_what_is_not_a_number(self, bad: Any) -> None:
        with pytest.raises(DataError, match="item 1 has"):
            compare([1.0, bad], [1.0, 1.0])

    def test_score_out_of_range_is_named(self) -> None:
        with pytest.raises(DataError, match=r"7\.0 is outside 0\.0 … 1\.0"):
            compare([7.0, 1.0], [1.0, 1.0])

    def test_no_items(self) -> None:
        with pytest.raises(DataError, match="no items"):
            compare([], [])

    def test_clusters_by_id(self) -> None:
        dense = {"a": 1, "b": 0, "c": 1, "d": 1}
        result = compare(dense, dict(dense), clusters={"a": "x", "b": "x", "c": "y", "d": "z"})
        assert result.clusters == 3
        with pytest.raises(DataError, match="without a cluster: 'd'"):
            compare(dense, dict(dense), clusters={"a": "x", "b": "x", "c": "y"})

    def test_seed_mapping_equals_rows(self) -> None:
        dense = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
        by_seed = {7: {"d": 1.0, "c": 1.0, "b": 1.0, "a": 0.0}, 11: {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}}
        rows = [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
        named, plain = compare(dense, by_seed), compare(list(dense.values()), np.array(rows))
        assert named.seeds == (7, 11)
        assert plain.seeds == (0, 1)
        assert named.p_matching == plain.p_matching
        assert named.interval == plain.interval

    def test_seed_names_must_fit(self) -> None:
        with pytest.raises(ConfigError, match="3 seeds named for 2"):
            compare([1, 0], [[1, 0], [1, 0]], seeds=[1, 2, 3])


class TestNumbers:
    def test_counts_and_means(self) -> None:
        dense, compressed = scores_of(50, 12, 3, 35)
        result = compare(dense, compressed, task="t", recipe="wanda@0.5", seeds=[4])
        assert (result.task, result.recipe, result.seeds) == ("t", "wanda@0.5", (4,))
        assert (result.n, result.clusters, result.unscored) == (100, 100, 0)
        assert (result.dense, result.compressed) == (0.62, 0.53)
        assert result.relative_drop == pytest.approx(1 - 0.53 / 0.62)
        assert (result.lost, result.gained) == (12, 3)

    @pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (12, 3), (5, 5), (0, 9)])
    def test_mcnemar_against_the_binomial_sum(self, lost: int, gained: int) -> None:
        result = compare(*scores_of(40, lost, gained, 20), explain=False)
        n = lost + gained
        weights = [math.comb(n, k) / 2**n for k in range(n + 1)]
        expected = sum(w for w in weights if w <= weights[lost] * (1 + 1e-9))
        assert result.mcnemar_p == pytest.approx(expected)

    def test_bounds_are_fiellers(self) -> None:
        """On many continuous scores no guard is active: the closed form of Fieller's quadratic, 5 % on each side."""
        rng = np.random.default_rng(0)
        dense = rng.uniform(0.2, 0.9, 4000)
        compressed = np.clip(dense * rng.uniform(0.6, 1.2, 4000), 0, 1)
        n, t = dense.size, stats.t.isf(0.05, dense.size - 1)
        cov = np.cov(compressed, dense) / n
        c, d = compressed.mean(), dense.mean()
        a, b, k = d**2 - t**2 * cov[1, 1], c * d - t**2 * cov[0, 1], c**2 - t**2 * cov[0, 0]
        root = math.sqrt(b**2 - a * k)
        expected = (1 - (b + root) / a, 1 - (b - root) / a)
        assert compare(dense, compressed).interval == pytest.approx(expected, rel=0.01, abs=1e-4)

    @pytest.mark.parametrize("clusters", [100, 20, 7])
    def test_bounds_invert_the_test(self, clusters: int) -> None:
        """Each end is the loss at which the test of the verdict says alpha."""
        dense, compressed = scores_of(50, 12, 3, 35)
        cluster = np.arange(100) % clusters
        low, high = compare(dense, compressed, clusters=cluster, alpha=0.1).interval or (0, 0)
        scores = PairedScores(dense=np.array(dense), compressed=np.array([compressed]), cluster=cluster, low=0, high=1)
        assert loss_test(scores, low).p_below == pytest.approx(0.1, abs=1e-4)
        assert loss_test(scores, high).p_above == pytest.approx(0.1, abs=1e-4)
        assert compare(dense, compressed, clusters=cluster, alpha=0.1, margin=low - 1e-4).verdict == "not matching"
        assert compare(dense, compressed, clusters=cluster, alpha=0.1, margin=low + 1e-4).verdict == "undecided"
        assert compare(dense, compressed, clusters=cluster, alpha=0.1, margin=high + 1e-4).verdict == "matching"

    def test_bounds_of_independent_answers_are_those_of_the_matched_pair_score_test(self) -> None:
        """Tango (1998) for a ratio: the distance in the standard errors of the likeliest counts whose loss is r.

        Below, in those of the sample where it varies more than those counts; and not beyond the mid-p of 12 losses
        among the 15 answers that differ.
        """
        dense, compressed = scores_of(50, 12, 3, 35)
        interval = compare(dense, compressed).interval
        assert interval is not None
        kinds = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=float)
        share = np.array([0.5, 0.12, 0.03, 0.35])
        for r in interval:
            t = kinds[:, 1] - (1 - r) * kinds[:, 0]

            def moment(tilt: float, t: Any = t) -> float:
                return float((share * t / (1 + tilt * t)).sum())

            tilt = optimize.brentq(moment, -1 / t.max() + 1e-9, -1 / t.min() - 1e-9)
            score = (share * t**2 / (1 + tilt * t)).sum() / 100
            sample = (share * (t - (share * t).sum()) ** 2).sum() / 99
            p = stats.t.sf(abs((share * t).sum()) / math.sqrt(max(score, sample)), 99)
            if r == interval[0]:
                losses = stats.binom(15, (1 + r * 62 / 15) / 2)
                p = max(p, losses.sf(12) + losses.pmf(12) / 2)
            assert p == pytest.approx(0.05, rel=1e-3)

    @pytest.mark.parametrize(("lost", "gained"), [(1, 0), (3, 0), (4, 0), (6, 1), (5, 5), (0, 3)])
    @pytest.mark.parametrize("loss", [-0.3, 0.0, 0.02, 0.3])
    def test_few_answers_that_differ_are_counted_exactly(self, lost: int, gained: int, loss: float) -> None:
        """At a loss of 0 by McNemar's mid-p; three of three is not enough for "lost", though Student's t says so."""
        dense, compressed = scores_of(40, lost, gained, 57)
        scores = PairedScores(
            dense=np.array(dense), compressed=np.array([compressed]), cluster=np.arange(len(dense)), low=0, high=1
        )
        changed = lost + gained
        losses = stats.binom(changed, min(1.0, max(0.0, (1 + loss * (40 + lost) / changed) / 2)))
        mid_p = losses.sf(lost) + losses.pmf(lost) / 2 if lost else 0.0
        test = loss_test(scores, loss)
        assert test.p_below == pytest.approx(max(mid_p, replace(test, least_p_below=0.0).p_below), rel=1e-9, abs=1e-15)
        if (lost, gained, loss) == (3, 0, 0.0):
            assert replace(test, least_p_below=0.0).p_below < 0.05 < test.p_below == pytest.approx(0.0625)

    @pytest.mark.parametrize(("lost", "gained"), [(0, 1), (0, 3), (0, 20), (1, 0), (1, 20), (20, 0), (20, 1)])
    def test_losses_and_gains_alone_have_both_bounds(self, lost: int, gained: int) -> None:
        """However the few answers that differ fall, the bounds lie around the estimate."""
        result = compare(*scores_of(40, lost, gained, 57))
        assert result.interval is not None
        assert result.relative_drop is not None
        assert result.interval[0] < result.relative_drop < result.interval[1]

    def test_the_search_for_an_end_ends(self) -> None:
        """Wherever it starts, if nothing is excluded on the way, and finds the first crossing if there is one."""
        rng = np.random.default_rng(0)
        for start, limit, margin in [*rng.uniform(-2, 2, (300, 3)).tolist(), [1.0, 1.0, 0.5], [0.5, 0.5 + 1e-15, 0.6]]:
            assert where_rejected(lambda _: 0.5, start, 0.025, limit=limit, margin=margin) is None
            end = start + 0.6 * (limit - start)
            slope = 0.475 / max(abs(end - start), 1e-9)
            found = where_rejected(
                lambda r, a=start, k=slope: 0.5 - k * abs(r - a),
                start,
                0.025,
                limit=limit,
                margin=margin,  # type: ignore[misc]
            )
            assert found is None or found == pytest.approx(end, abs=1e-6)
            assert (found is None) == (abs(limit - start) < 1e-9)

    def test_an_end_is_on_the_side_of_the_margin_that_the_test_says(self) -> None:
        """Where p rises again behind the first crossing, the margin decides which crossing is reported."""

        def p(r: float) -> float:
            return 0.01 if 0.1 < r < 0.2 or r > 0.6 else 0.5

        assert where_rejected(p, 0.0, 0.05, limit=1.0, margin=0.15) == pytest.approx(0.1, abs=0.01)
        assert where_rejected(p, 0.0, 0.05, limit=1.0, margin=0.4) == pytest.approx(0.6, abs=0.01)
        assert where_rejected(p, 0.0, 0.05, limit=1.0, margin=-0.4) == pytest.approx(0.1, abs=0.01)

    def test_clusters_that_agree_by_luck_leave_an_interval(self) -> None:
        """What each of five clusters lost it gained: their sums do not differ at all, the answers do."""
        right, cluster = np.tile([1.0, 1, 1, 0, 0, 0, 1, 0], 5), np.repeat(np.arange(5), 8)
        turned = np.tile([0.0, 1, 1, 1, 0, 0, 1, 0], 5)
        low, high = compare(right, turned, clusters=cluster).interval or (0, 0)
        assert low < -0.05
        assert high > 0.05

    def test_scores_that_all_lose_a_little(self) -> None:
        """An unseen gain is as large as what was seen: below, the interval is nearly Student's (Fieller's)."""
        rng = np.random.default_rng(3)
        dense = rng.beta(3, 12, 200)
        compressed = dense * 0.9 * (1 + 0.3 * rng.uniform(-1, 1, 200))
        low, high = compare(dense, compressed).interval or (0, 0)
        estimate = 1 - compressed.mean() / dense.mean()
        t = compressed - (1 - estimate) * dense
        student = stats.t.isf(0.05, 199) * t.std(ddof=1) / math.sqrt(200) / dense.mean()
        assert estimate - low == pytest.approx(student, rel=0.1)
        assert student < high - estimate < 1.5 * student

    def test_above_chance(self) -> None:
        dense, compressed = scores_of(500, 120, 30, 350)
        result, raw = compare(dense, compressed, chance=0.25), compare(dense, compressed)
        assert result.relative_drop == pytest.approx(1 - (0.53 - 0.25) / (0.62 - 0.25))
        assert result.raw_drop == raw.relative_drop == raw.raw_drop == pytest.approx(1 - 0.53 / 0.62)
        assert result.interval is not None
        assert raw.interval is not None
        assert result.interval[0] < 1 - (0.53 - 0.25) / (0.62 - 0.25) < result.interval[1]
        assert result.interval[1] - result.interval[0] > raw.interval[1] - raw.interval[0]

    def test_above_chance_is_the_plain_loss_of_scores_less_chance(self) -> None:
        """Scores that never fall below chance: the same as the test of what is above it, without chance."""
        rng = np.random.default_rng(3)
        dense = rng.uniform(0.3, 0.9, 400)
        compressed = dense * rng.uniform(0.7, 1.0, 400)
        above = compare(dense, compressed, chance=0.2)
        plain = compare(dense - 0.2, np.clip(compressed - 0.2, 0, None))
        assert above.relative_drop == pytest.approx(plain.relative_drop)
        assert above.interval == pytest.approx(plain.interval, abs=0.01)

    def test_papers_rule_at_its_border(self) -> None:
        assert compare(*scores_of(57, 3, 0, 40)).paper_verdict == "matching"
        assert compare(*scores_of(56, 4, 0, 40)).paper_verdict == "not matching"
        # Exactly 95 %, which binary fractions miss by a hair.
        assert compare([0.035] * 10, [0.03325] * 10).paper_verdict == "matching"

    def test_continuous_scores_say_so(self) -> None:
        result = compare([0.5, 0.2, 0.9], [0.4, 0.3, 0.9])
        assert (result.gained, result.lost, result.mcnemar_p) == (1, 1, None)
        assert any("rose and that fell" in note for note in result.notes)

    def test_scores_of_a_judge(self) -> None:
        """A 1-10 judge: everything is relative, so tenths of the same scores give the same test."""
        rng = np.random.default_rng(5)
        dense, compressed = rng.integers(3, 11, 80), rng.integers(3, 11, 80)
        judged = compare(dense, compressed, score_range=(0, 10))
        tenths = compare(dense / 10, compressed / 10)
        assert judged.interval == pytest.approx(tenths.interval, abs=1e-6)
        assert judged.p_matching == pytest.approx(tenths.p_matching)
        assert compare([1, 1, 1], [1, 1, 1], score_range=(1, 10)).verdict == "no signal"

    def test_seeds_widen_the_interval(self) -> None:
        """The same items under seeds that disagree: wider than with one seed."""
        rng = np.random.default_rng(2)
        dense = np.ones(400)
        rows = np.array([(rng.random(400) > share) * 1.0 for share in (0.05, 0.15, 0.25)])
        several, single = compare(dense, rows), compare(dense, rows[1])
        assert several.interval is not None
        assert single.interval is not None
        assert several.interval[1] - several.interval[0] > 2 * (single.interval[1] - single.interval[0])
        assert several.lost == pytest.approx((rows == 0).sum() / 3)
        assert any("one calibration seed" in note for note in single.notes)
        assert not any("calibration variance" in note for note in several.notes)
        assert several.undecided is not None
        assert (several.undecided.reason, several.undecided.more_items) == ("few seeds", None)
        assert any("3 calibration seeds differ" in note for note in several.notes)
        assert not any("calibration" in note for note in compare(dense, rows[1], seeds=[]).notes)

    def test_clusters_widen_the_interval(self) -> None:
        """Ten copies of every item tell no more than one."""
        dense, compressed = scores_of(30, 8, 3, 19)
        clusters = [i for i in range(60) for _ in range(10)]
        many = compare(np.repeat(dense, 10), np.repeat(compressed, 10), clusters=clusters)
        one, naive = compare(dense, compressed), compare(np.repeat(dense, 10), np.repeat(compressed, 10))
        widths = [r.interval[1] - r.interval[0] for r in (many, one, naive) if r.interval]
        assert widths[0] == pytest.approx(widths[1], rel=0.15)
        assert widths[2] < 0.5 * widths[0]

    def test_smallest_detectable_loss(self) -> None:
        small, large = (compare(*scores_of(k * 60, k * 5, k * 5, k * 30)) for k in (1, 16))
        assert small.smallest_detectable_loss is not None
        assert large.smallest_detectable_loss is not None
        excess = (small.smallest_detectable_loss - 0.05) / (large.smallest_detectable_loss - 0.05)
        assert excess == pytest.approx(4, rel=0.05)

    def test_few_graded_scores_tell_less_than_their_spread_says(self) -> None:
        """Each of eight loses about the same: no less than the loss told is called not matching, and all beyond is."""
        dense = np.linspace(0.5, 0.7, 8)
        found = compare(dense, 0.95 * dense + np.tile([0.001, -0.001], 4)).smallest_detectable_loss
        assert found is not None
        assert found > 0.1
        assert compare(dense, (1 - found + 0.01) * dense).verdict == "undecided"
        assert compare(dense, (1 - found - 0.01) * dense).verdict == "not matching"
        many = compare(np.tile(dense, 500), np.tile(0.97 * dense, 500)).smallest_detectable_loss
        assert many is not None
        assert many < 0.06

    def test_all_is_the_most_that_can_be_lost(self) -> None:
        result = compare(*scores_of(0, 30, 0, 30))
        assert result.relative_drop == 1
        assert result.interval is not None
        assert result.interval[1] == 1

    def test_low_scores_are_not_punished_for_the_range(self) -> None:
        """ROUGE lives below 0.5: what could be lost is bounded by the scores seen, not by the scale's end."""
        rng = np.random.default_rng(7)
        dense = rng.uniform(0.1, 0.4, 100)
        compressed = np.clip(dense + rng.normal(0, 0.05, 100), 0, 1)
        wide, narrow = compare(dense, compressed), compare(dense, compressed, score_range=(0, 0.6))
        assert wide.interval == pytest.approx(narrow.interval)

    def test_order_of_items_is_irrelevant(self) -> None:
        dense, compressed = scores_of(50, 12, 3, 35)
        shuffled = np.random.default_rng(0).permutation(100)
        a = compare(dense, compressed)
        b = compare(np.array(dense)[shuffled], np.array(compressed)[shuffled])
        assert a.p_matching == pytest.approx(b.p_matching)
        assert a.interval == pytest.approx(b.interval)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(binary, binary), min_size=2, max_size=30))
    def test_invariants(self, pairs: list[tuple[float, float]]) -> None:
        result = compare([d for d, _ in pairs], [c for _, c in pairs], explain=False)
        assert result.n == len(pairs)
        assert result.gained - result.lost == round(sum(c - d for d, c in pairs))
        if result.interval is not None and result.relative_drop is not None:
            assert result.interval[0] <= result.relative_drop <= result.interval[1]
        if result.p_matching is not None and result.p_not_matching is not None:
            assert result.p_matching + result.p_not_matching >= 1 - 1e-9

    def test_answers_as_many_as_those_of_mmlu(self) -> None:
        rng = np.random.default_rng(0)
        dense = (rng.random(14_042) < 0.45) * 1.0
        compressed = np.where(rng.random(14_042) < 0.1, 1 - dense, dense)
        result = compare(dense, compressed, clusters=rng.integers(57, size=14_042), chance=0.25)
        assert result.clusters == 57
        result = compare(dense, compressed, strata=rng.integers(57, size=14_042), chance=0.25)
        assert (result.clusters, result.strata) == (14_042, 57)


class TestPerplexity:
    def test_ratio_of_exponentials(self) -> None:
        rng = np.random.default_rng(0)
        dense = rng.normal(3, 0.3, 60)
        compressed, tokens = dense + rng.normal(0.1, 0.02, 60), rng.integers(100, 500, 60)
        result = compare_perplexity(dense, compressed, tokens)
        ppl = [math.exp((x * tokens).sum() / tokens.sum()) for x in (dense, compressed)]
        assert (result.dense, result.compressed) == pytest.approx(ppl)
        assert result.relative_increase == pytest.approx(ppl[1] / ppl[0] - 1)
        assert result.outcome == "beyond margin"

    def test_bounds_of_equal_windows_are_students(self) -> None:
        rng = np.random.default_rng(1)
        difference = rng.normal(0.05, 0.1, 50)
        result = compare_perplexity(np.full(50, 2.0), 2.0 + difference)
        expected = stats.ttest_1samp(difference, 0).confidence_interval(0.90)
        assert result.interval == pytest.approx((math.expm1(expected.low), math.expm1(expected.high)), rel=0.02)

    def test_margin(self) -> None:
        dense = np.random.default_rng(2).normal(3, 0.3, 200)
        noise = np.random.default_rng(3).normal(0, 0.01, 200)
        assert compare_perplexity(dense, dense + 0.01 + noise).outcome == "within margin"
        assert compare_perplexity(dense, dense + math.log(1.05) + noise - noise.mean()).outcome == "undecided"
        assert compare_perplexity([2.0], [2.1]).interval is None

    def test_never_part_of_an_overall_verdict(self) -> None:
        with pytest.raises(ConfigError, match="no perplexity"):
            overall_verdict([compare_perplexity([2.0, 2.1], [2.1, 2.2])])  # type: ignore[list-item]

    def test_missing_window(self) -> None:
        with pytest.raises(DataError, match="every window"):
            compare_perplexity([2.0, None], [2.0, 2.1])


class TestChoiceAgreement:
    def test_by_hand(self) -> None:
        dense = {"a": np.log([0.5, 0.25, 0.25]), "b": np.log([0.1, 0.9])}
        compressed = {"b": np.log([0.6, 0.4]), "a": np.log([0.5, 0.25, 0.25]) - 3}
        result = choice_agreement(dense, compressed)
        divergence = 0.1 * math.log(0.1 / 0.6) + 0.9 * math.log(0.9 / 0.4)
        assert result.mean_kl == pytest.approx(divergence / 2)
        assert (result.n, result.top1_agreement) == (2, 0.5)

    def test_what_was_chosen_may_be_told(self) -> None:
        rows = {"a": [0.0, -1.0], "b": [0.0, -1.0]}
        result = choice_agreement(rows, rows, chosen=({"a": "A", "b": "B"}, {"a": "A", "b": "A"}))
        assert (result.mean_kl, result.top1_agreement) == (0.0, 0.5)

    def test_against_scipy(self) -> None:
        rng = np.random.default_rng(0)
        p, q = rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
        expected = stats.entropy(np.exp(p), np.exp(q), axis=1).mean()
        assert choice_agreement(list(p), list(q)).mean_kl == pytest.approx(expected)

    @pytest.mark.parametrize("row", [[0.0], [0.0, -math.inf], [0.0, 0.0, 0.0]])
    def test_rows_that_cannot_be_compared(self, row: list[float]) -> None:
        with pytest.raises(DataError, match="item 0"):
            choice_agreement([[0.0, -1.0]], [row])
