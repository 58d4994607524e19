"""The five outcomes, the degenerate cases, the test against its oracles, many verdicts at once."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from llmkick.errors import ConfigError
from llmkick.statistics import compare, fixed_sequence, holm, overall_verdict
from llmkick.statistics.mean import (
    MeanTest,
    UnobservedMoments,
    _tilt_to_zero,
    mean_test,
    null_variance,
)
from llmkick.statistics.variance import clustered_mean
from llmkick.statistics.verdict import PairedScores, loss_bounds, loss_test


def table(right: int, lost: int, gained: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [right, lost, gained, wrong]
    return np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)


class TestOutcomes:
    @pytest.mark.parametrize(
        ("counts", "verdict"),
        [
            ((700, 40, 40, 220), "matching"),
            ((500, 200, 30, 270), "not matching"),
            ((680, 70, 30, 220), "undecided"),
        ],
    )
    def test_three_verdicts(self, counts: tuple[int, int, int, int], verdict: str) -> None:
        result = compare(*table(*counts))
        assert result.verdict == verdict
        assert (result.p_matching < 0.05, result.p_not_matching < 0.05) == (  # type: ignore[operator]
            verdict == "matching",
            verdict == "not matching",
        )

    def test_the_margin_moves_the_verdict(self) -> None:
        counts = table(620, 100, 30, 250)
        assert compare(*counts, margin=0.2).verdict == "matching"
        assert compare(*counts, margin=0.02).verdict == "not matching"

    def test_no_signal(self) -> None:
        assert compare([0] * 9, [0] * 9).verdict == "no signal"
        assert compare([0] * 9, [1] * 9).verdict == "no signal"
        at_chance = compare(*table(20, 5, 5, 70), chance=0.25)
        assert at_chance.verdict == "no signal"
        assert (at_chance.p_matching, at_chance.p_not_matching) == (None, None)
        assert any("nothing to forget" in note for note in at_chance.notes)
        assert compare(*table(45, 5, 5, 45), chance=0.25).verdict != "no signal"

    def test_signal_needs_more_than_luck(self) -> None:
        """One-sided at 5 %: of 100 items at a chance of 0.25, 31 right is luck (p = 0.10), 36 is not."""
        assert compare(*table(31, 0, 0, 69), chance=0.25).verdict == "no signal"
        assert compare(*table(36, 0, 0, 64), chance=0.25).verdict == "matching"

    def test_undefined_is_none(self) -> None:
        result = compare([0] * 9, [1] * 9)
        assert (result.relative_drop, result.interval, result.paper_verdict) == (None, None, None)


class TestDegenerate:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
    def test_dense_against_itself(self, scores: list[float]) -> None:
        result = compare(scores, scores)
        assert result.verdict == ("matching" if np.mean(scores) > 0 else "no signal")
        assert (result.gained, result.lost) == (0, 0)

    def test_identity_on_few_items_says_what_it_proves(self) -> None:
        few, many = compare([1.0] * 20, [1.0] * 20), compare([1.0] * 200, [1.0] * 200)
        assert few.p_matching is not None
        assert many.p_matching is not None
        # Nothing lost among 20 where 5 % may be: probability 0.95 ** 20 = 0.36.
        assert few.p_matching > 0.05 > many.p_matching
        assert any("identical" in note for note in few.notes)

    @pytest.mark.parametrize(("right", "verdict"), [(57, "undecided"), (59, "matching")])
    def test_nothing_lost_is_no_rarer_than_it_is(self, right: int, verdict: str) -> None:
        """60 items of which 3 may fall: at a loss of the margin none of them does in (1 − 0.05·d)^60."""
        scores = [1.0] * right + [0.0] * (60 - right)
        result = compare(scores, scores, same_model=False)
        assert result.p_matching == pytest.approx((1 - 0.05 * right / 60) ** 60)
        assert result.verdict == verdict

    def test_an_unchanged_score_loses_at_most_the_best(self) -> None:
        """Graded: 5 % of a mean of 0.5 of at most 0.8 is lost by at least one item in 32."""
        scores = [0.2, 0.8] * 50
        result = compare(scores, scores, same_model=False)
        assert result.p_matching is not None
        assert result.p_matching >= (1 - 0.05 * 0.5 / 0.8) ** 100

    @pytest.mark.parametrize("size", [1e-323, 2.225073858507203e-309, 1e-200])
    def test_scores_as_small_as_floats_can_be(self, size: float) -> None:
        result = compare([0.0, size], [0.0, size])
        assert (result.verdict, result.lost) == ("matching", 0)
        assert compare([0.0, size], [0.0, 0.0]).lost == 1

    def test_another_model_has_to_prove_that_it_is_the_same(self) -> None:
        few, many = ([1.0] * n for n in (20, 200))
        assert compare(few, few, same_model=False).verdict == "undecided"
        assert compare(many, many, same_model=False).verdict == "matching"
        assert compare([1.0], [1.0], same_model=False).verdict == "undecided"
        assert any("so few items do not prove" in note for note in compare(few, few, same_model=False).notes)

    def test_the_same_model_matches_whatever_its_scores(self) -> None:
        """Batched otherwise, the same weights may differ on an item or two."""
        result = compare([1.0] * 5, [1.0, 1.0, 0.0, 1.0, 1.0], same_model=True)
        assert result.verdict == "matching"
        assert any("the weights are the dense model's" in note for note in result.notes)
        assert compare([0.0] * 5, [0.0] * 5, same_model=True).verdict == "no signal"

    @pytest.mark.parametrize("n", [1, 2, 5, 20, 100])
    @pytest.mark.parametrize("clusters", [None, 5])
    def test_a_silent_model_never_matches(self, n: int, clusters: int | None) -> None:
        labels = None if clusters is None else [i % clusters for i in range(n)]
        result = compare([1.0] * n, [0.0] * n, clusters=labels)
        assert result.verdict == ("not matching" if n >= 5 else "undecided")

    def test_a_silent_model_whatever_the_dense_one_does(self) -> None:
        rng = np.random.default_rng(0)
        for n in (10, 30, 100):
            for _ in range(20):
                dense = (rng.random(n) < 0.7) * 1.0
                assert compare(dense, np.zeros(n)).verdict in ("not matching", "undecided")
        assert compare(dense, np.zeros(n)).verdict == "not matching"

    def test_a_collapse_shows_on_few_uneven_clusters(self) -> None:
        """Six stories with very different dense scores, none answered after compression."""
        dense = np.concatenate([np.arange(20) < right for right in (17, 18, 18, 19, 20, 9)]) * 1.0
        stories = [i // 20 for i in range(120)]
        assert compare(dense, np.zeros(120), clusters=stories).verdict == "not matching"

    def test_one_item(self) -> None:
        lost = compare([1.0], [0.0])
        assert (lost.verdict, lost.interval, lost.p_matching) == ("undecided", None, None)
        assert any("only one item" in note for note in lost.notes)
        assert compare([1.0], [1.0]).verdict == "matching"
        assert compare([0.0], [0.0]).verdict == "no signal"
        assert compare([1.0], [1.0], chance=0.25).verdict == "no signal"

    def test_one_cluster(self) -> None:
        dense, compressed = table(30, 30, 0, 40)
        result = compare(dense, compressed, clusters=["story"] * 100)
        assert (result.verdict, result.interval) == ("undecided", None)
        assert any("only one cluster" in note for note in result.notes)

    def test_constant_shortfall(self) -> None:
        """Every item loses the same share: no variance, and still the sign decides."""
        dense = np.full(200, 0.8)
        assert compare(dense, dense * 0.99).verdict == "matching"
        assert compare(dense, dense * 0.9).verdict == "not matching"

    @pytest.mark.parametrize("margin", [0, 1, -0.1, 5, math.nan])
    def test_margin_out_of_range(self, margin: float) -> None:
        with pytest.raises(ConfigError, match="margin"):
            compare([1, 0], [1, 0], margin=margin)

    @pytest.mark.parametrize("kwargs", [{"alpha": 0.6}, {"chance": 1.0}, {"score_range": (2, 1)}])
    def test_other_settings_out_of_range(self, kwargs: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            compare([1, 0], [1, 0], **kwargs)  # type: ignore[arg-type]


class TestIncomplete:
    def test_all_unscored(self) -> None:
        result = compare([None, None], [1.0, None])
        assert (result.verdict, result.n, result.unscored) == ("incomplete", 0, 2)
        assert (result.dense, result.compressed, result.relative_drop) == (None, None, None)

    def test_unscored_that_cannot_matter(self) -> None:
        dense, compressed = (list(x) for x in table(400, 200, 30, 270))
        compressed[0] = None
        result = compare(dense, compressed)
        assert (result.verdict, result.unscored, result.n) == ("not matching", 1, 899)
        assert any("cannot change" in note for note in result.notes)

    def test_unscored_that_could_matter(self) -> None:
        dense, compressed = (list(x) for x in table(700, 40, 40, 220))
        assert compare(dense, compressed).verdict == "matching"
        for index in range(80):
            compressed[index] = None
        result = compare(dense, compressed)
        assert (result.verdict, result.unscored) == ("incomplete", 80)
        assert any("could change" in note for note in result.notes)

    def test_bounds_by_hand(self) -> None:
        result = compare([1.0, 1.0, None, 1.0], [1.0, None, 1.0, 0.0])
        # Best: dense 1 1 0 1, compressed 1 1 1 0; worst: dense 1 1 1 1, compressed 1 0 1 0.
        assert result.drop_bounds == pytest.approx((0.0, 0.5))
        assert compare([1.0, 0.0], [0.0, 0.0]).drop_bounds == (1.0, 1.0)
        assert compare([None, 0.0], [1.0, 0.0]).drop_bounds is None

    def test_the_best_case_counts_too(self) -> None:
        """Not matching, and at worst more so; had all the unscored been right, it would be open."""
        dense, compressed = table(480, 76, 30, 414)
        assert compare(dense, compressed).verdict == "not matching"
        assert compare([*dense, *[1.0] * 60], [*compressed, *[0.0] * 60]).verdict == "not matching"
        assert compare([*dense, *[1.0] * 60], [*compressed, *[1.0] * 60]).verdict == "undecided"
        gaps: list[float | None] = compressed.tolist()
        gaps += [None] * 60
        assert compare([*dense, *[1.0] * 60], gaps).verdict == "incomplete"

    def test_unscored_in_either_model_and_any_seed(self) -> None:
        rows: list[list[float | None]] = [[1, None, 1, 0], [1, 1, 1, 0]]
        result = compare([None, 1, 1, 0], rows)
        assert (result.n, result.unscored) == (2, 2)


class TestMeanTest:
    def test_is_students_t_on_many_plain_values(self) -> None:
        values = np.random.default_rng(0).normal(0.02, 1, 300)
        ours = mean_test(values[None], np.arange(300))
        reference = stats.ttest_1samp(values, 0, alternative="greater")
        assert ours.df == pytest.approx(299)
        assert ours.p_above == pytest.approx(reference.pvalue, rel=0.01)

    def test_equal_clusters_are_their_means(self) -> None:
        """Balanced clusters: the t test on cluster means, df = clusters − 1."""
        rng = np.random.default_rng(1)
        values = rng.normal(size=(12, 8)) + rng.normal(size=(12, 1))
        ours = mean_test(values.reshape(1, -1), np.repeat(np.arange(12), 8))
        means = values.mean(axis=1)
        assert ours.df == pytest.approx(11)
        assert math.sqrt(ours.variance) == pytest.approx(stats.sem(means), rel=0.05)

    @pytest.mark.parametrize("effect", [0.0, 1.0])
    def test_variance_and_df_against_matrices(self, effect: float) -> None:
        """CR2 and Bell-McCaffrey with the full matrices; the working correlation is what the excess tells."""
        sizes = np.array([3, 5, 9, 2, 14])
        cluster, n = np.repeat(np.arange(5), sizes), sizes.sum()
        indicator = np.eye(5)[cluster]  # (items, clusters)
        residual_maker = np.eye(n) - np.full((n, n), 1 / n)
        scaled = (indicator / np.sqrt(1 - sizes / n)).T @ residual_maker
        rng = np.random.default_rng(3)
        values = rng.normal(size=n)
        for g in range(5):
            values[cluster == g] += effect * rng.normal() - values[cluster == g].mean()
        raw = ((scaled @ values) ** 2).sum() / n**2
        excess = raw / (values.var(ddof=1) / n) - 1
        correlation = min(max(excess, 0) / ((sizes**2).sum() / n - 1), 1)
        assert (correlation > 0.1) == bool(effect)
        omega = (1 - correlation) * np.eye(n) + correlation * indicator @ indicator.T
        m = scaled @ omega @ scaled.T
        ours = mean_test(values[None], cluster)
        assert ours.df == pytest.approx(np.trace(m) ** 2 / np.trace(m @ m))
        assert ours.variance >= raw * omega.sum() / np.trace(m) - 1e-12

    def test_seed_variance_by_hand(self) -> None:
        """Four seeds, items on their own: the spread of their means less a quarter of what item noise explains."""
        rng = np.random.default_rng(6)
        values = rng.normal(size=(4, 50)) + np.array([[0.0], [0.1], [0.5], [-0.6]])
        means = values.mean(axis=1)
        interaction = values - means[:, None] - values.mean(axis=0) + means.mean()
        noise = (interaction**2).sum() / (3 * 49) / (4 * 50)
        ours = mean_test(values, np.arange(50))
        assert ours.seed_variance == pytest.approx(means.var(ddof=1) / 4 - noise / 4)
        assert ours.seed_df == 3
        assert mean_test(values - means[:, None], np.arange(50)).seed_variance == 0
        two = mean_test(values[:2], np.arange(50))
        assert two.seed_variance == pytest.approx(means[:2].var(ddof=1) / 2)

    def test_null_variance_against_an_optimiser(self) -> None:
        """The constrained maximum likelihood of a paired table, found by brute force."""
        right, lost, gained, wrong = counts = (60, 4, 5, 31)
        kept = 0.95

        def negative_log_likelihood(cells: np.ndarray) -> float:
            p11, p10 = cells
            p01 = kept * (p11 + p10) - p11
            p = np.array([p11, p10, p01, 1 - p11 - p10 - p01])
            return np.inf if (p <= 0).any() else -float((np.array(counts) * np.log(p)).sum())

        best = optimize.minimize(
            negative_log_likelihood,
            [0.6, 0.06],
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-10},
        )
        p11, p10 = best.x
        p01 = kept * (p11 + p10) - p11
        expected = p11 * 0.05**2 + p10 * 0.95**2 + p01
        values = np.repeat([1 - kept, -kept, 1.0, 0.0], [right, lost, gained, wrong])
        assert null_variance(values, UnobservedMoments(-kept, kept**2), UnobservedMoments(1.0, 1.0)) == pytest.approx(
            expected, rel=1e-4
        )

    @pytest.mark.parametrize("size", [*range(1, 8), 9, 30, 400])
    def test_the_tilt_is_that_of_fifty_bisections(self, size: int) -> None:
        rng = np.random.default_rng(size)
        for _ in range(20):
            value, weight = np.sort(rng.uniform(-1, 1, size)), rng.random(size)
            below, above = limits = -1 / max(0.5, value[-1]), -1 / min(-0.5, value[0])
            for _ in range(50):
                tilt = (below + above) / 2
                mean = (weight * value / np.maximum(1 + tilt * value, 1e-12)).sum()
                below, above = (tilt, above) if mean > 0 else (below, tilt)
            exact = tilt if size < 8 else pytest.approx(tilt, abs=1e-13 * (limits[1] - limits[0]))
            assert _tilt_to_zero(weight * value, value, limits) == exact

    def test_null_variance_of_what_was_not_seen(self) -> None:
        """All values alike: whatever share makes the mean 0 was not seen, and it varies as it is said to."""
        values, low, high = np.full(50, 0.2), UnobservedMoments(-0.6, 0.5), UnobservedMoments(0.3, 0.2)
        share = 0.2 / (0.2 + 0.6)
        assert null_variance(values, low, high) == pytest.approx((1 - share) * 0.04 + share * 0.5)
        share = 0.2 / (0.2 + 0.3)
        assert null_variance(-values, low, high) == pytest.approx((1 - share) * 0.04 + share * 0.2)
        assert null_variance(values, UnobservedMoments(0.1, 0.5), high) == 0
        # What was seen reaches further than the unseen do on average: nothing is left for them.
        mixed = np.array([0.2, 0.2, 0.1, -0.9])
        seen = null_variance(mixed, UnobservedMoments(-0.9, 9), UnobservedMoments(0.2, 9))
        assert null_variance(mixed, low, high) == pytest.approx(seen)

    def test_unobserved_by_hand(self) -> None:
        """Where items lost, others lose two thirds of the way from the worst to all; gains are as any change."""

        def scores(dense: list[float], compressed: list[float]) -> PairedScores:
            c = np.array([compressed])
            return PairedScores(dense=np.array(dense), compressed=c, cluster=np.arange(len(dense)), low=0.0, high=1.0)

        low, high = scores([1, 1, 0, 0], [1, 0, 0, 0]).unobserved(0.1)
        assert low == pytest.approx((-0.9, 0.81))
        assert high == pytest.approx((1, 1))
        low, high = scores([0.8, 0.4, 0.2], [0.8, 0.3, 0.2]).unobserved(0.5)
        # No t is below 0 at this loss.
        assert low == pytest.approx((-2 * (0.4 + 0.2 + 0.1) / 9, 2 * (0.16 + 0.04 + 0.01) / 9))
        low, _ = scores([0.8, 0.4, 0.2], [0.8, 0.3, 0.2]).unobserved(0.0)
        assert low == pytest.approx((-(2 * 1.4 / 3 + 0.1) / 3, (2 * 0.84 / 3 + 0.01) / 3))
        low, _ = scores([0.8, 0.4, 0.2], [0.8, 0.5, 0.2]).unobserved(0.0)
        assert low == pytest.approx((-1.4 / 3, 0.84 / 3))
        # The worst that was seen is worse than all that items have on average.
        assert scores([0.8, 0.4, 0.2], [0, 0.4, 0.2]).unobserved(0.0)[0] == pytest.approx((-1.4 / 3, 0.84 / 3))
        # The best score seen gains nothing more; the others rise by 0.1.
        assert high == pytest.approx(((0.3 + 0.2) / 2, (0.09 + 0.04) / 2))
        assert scores([1, 0.5], [1, 0.5]).unobserved(0.0)[1] == pytest.approx((0.5, 0.25))
        assert scores([1, 1], [1, 1]).unobserved(0.05) == (pytest.approx((-0.95, 0.95**2)), pytest.approx((1, 1)))
        counted = scores([1, 0], [0, 0]).unobserved(0.1, 0.25)
        assert counted == (pytest.approx((-0.25 - 0.675, 0.925**2)), pytest.approx((0.75 + 0.225, 0.975**2)))

    def test_variance_is_the_larger_of_that_of_clusters_and_of_the_score_test(self) -> None:
        """Twenty clusters, three of which lose much: CR2, the score test and its design effect, all by hand."""
        rng = np.random.default_rng(4)
        sums = np.concatenate([rng.normal(0.5, 0.1, 17), [-2.0, -3.0, -1.0]])
        values, cluster = np.repeat(sums / 5, 5), np.repeat(np.arange(20), 5)
        low, high = UnobservedMoments(-0.95, 0.95**2), UnobservedMoments(1.0, 1.0)
        sample = sums.var(ddof=1) * 20 / 100**2
        plain = mean_test(values[None], cluster)
        assert plain.variance == pytest.approx(sample, rel=1e-3)
        effect = sample / (values.var(ddof=1) / 100)
        assert effect > 4
        score = null_variance(values, low, high) / 100
        test = mean_test(values[None], cluster, (low, high))
        assert score * effect > sample
        assert test.variance == pytest.approx(score * effect, rel=1e-3)
        alone = mean_test(values[None], np.arange(100), (low, high))
        assert alone.variance == pytest.approx(max(score, values.var(ddof=1) / 100))

    def test_skewness_is_that_of_the_sums_over_clusters(self) -> None:
        rng = np.random.default_rng(4)
        sums = np.concatenate([rng.normal(0.5, 0.1, 17), [-2.0, -3.0, -1.0]])
        values, cluster = np.repeat(sums / 5, 5), np.repeat(np.arange(20), 5)

        def skewness(t: np.ndarray) -> float:
            return float(((t - t.mean()) ** 3).sum() / ((t - t.mean()) ** 2).sum() ** 1.5)

        assert mean_test(values[None], cluster).skewness == pytest.approx(skewness(sums))
        assert mean_test(values[None], cluster, binary=True).skewness == pytest.approx(skewness(sums))
        assert mean_test(values[None], np.arange(100)).skewness == pytest.approx(skewness(values))
        assert mean_test(values[None], np.arange(100), binary=True).skewness == 0
        assert mean_test(values[None] * 1e-200, cluster).skewness == pytest.approx(skewness(sums))

    def test_clusters_that_agree_by_luck_are_no_better_than_items(self) -> None:
        """Sums that hardly differ: the design effect below 1 counts as 1."""
        values, cluster = np.tile([-0.95, 0.05, 0.05, 0.25, 0.0], 20), np.repeat(np.arange(20), 5)
        low, high = UnobservedMoments(-0.95, 0.95**2), UnobservedMoments(1.0, 1.0)
        assert mean_test(values[None], cluster, (low, high)).variance >= 0.999 * null_variance(values, low, high) / 100

    def test_clusters_have_to_prove_a_small_loss_with_fewer_degrees_of_freedom(self) -> None:
        values = np.random.default_rng(5).normal(0.1, 1, 96)[None]
        alone, cluster = mean_test(values, np.arange(96), binary=True), np.repeat(np.arange(12), 8)
        assert (alone.df_above, alone.p_above) == (95, pytest.approx(stats.t.sf(alone.mean / alone.standard_error, 95)))
        share = 8 * 0.1 / (1 + 7 * 0.1)
        assert clustered_mean(values, cluster, 1.0).between_share == pytest.approx(share)
        test = mean_test(values, cluster)
        t = test.mean / test.standard_error
        corrected = t + test.skewness * t**2 / 3 + test.skewness**2 * t**3 / 27 + test.skewness / 6
        assert test.p_above == pytest.approx(stats.t.sf(min(t, corrected), 11 / (1 + 4 * share**2)))
        assert test.p_below == pytest.approx(stats.t.sf(-t, 11))
        assert test.critical(0.05, test.df) < test.critical(0.05, test.df_above)

    @pytest.mark.parametrize(
        ("clusters", "size", "fewer"),
        [(5, 100, 2.0), (4, 100, 1.5), (10, 100, 2.061), (40, 1000, 7.912), (40, 2, 34.445)],
    )
    def test_fewer_degrees_of_freedom_by_hand(self, clusters: int, size: int, fewer: float) -> None:
        """A fifth where clusters are large, hardly fewer where they are pairs; two if there are four."""
        values = np.random.default_rng(5).normal(0.1, 1, clusters * size)[None]
        test = mean_test(values, np.repeat(np.arange(clusters), size))
        assert test.df_above == pytest.approx(fewer, abs=0.005)

    def test_a_larger_margin_undoes_no_verdict(self) -> None:
        """On few clusters with skewed losses: what matches within a loss matches within every larger one."""
        rng = np.random.default_rng(1)
        for clusters in (5, 8, 12, 20) * 10:
            cluster = np.repeat(np.arange(clusters), 10)
            dense = (rng.random(cluster.size) < 0.6) * 1.0
            lost = rng.random(cluster.size) < rng.beta(0.3, 4, clusters)[cluster]
            compressed = np.where(lost, 0.0, np.where(rng.random(cluster.size) < 0.06, 1.0, dense))
            scores = PairedScores(dense=dense, compressed=compressed[None], cluster=cluster, low=0.0, high=1.0)
            matching = [loss_test(scores, float(loss)).p_above < 0.05 for loss in np.arange(-0.1, 0.6, 0.01)]
            assert matching == sorted(matching)

    @pytest.mark.parametrize("counts", [(44, 1, 0, 15), (44, 0, 1, 15)])
    def test_copies_prove_no_more_than_one(self, counts: tuple[int, int, int, int]) -> None:
        """One changed of 60, each item ten times over: nearly the p value of the 60, not that of 600."""
        dense, compressed = table(*counts)
        single = compare(dense, compressed)
        copies = compare(
            np.repeat(dense, 10), np.repeat(compressed, 10), clusters=[i for i in range(60) for _ in range(10)]
        )
        naive = compare(np.repeat(dense, 10), np.repeat(compressed, 10))
        assert copies.p_matching >= 0.9 * single.p_matching  # type: ignore[operator]
        assert naive.p_matching < 0.1 * single.p_matching  # type: ignore[operator]

    def test_nothing_lost_follows_the_rule_of_three(self) -> None:
        """All right in both: 5 % lost is excluded by 59 items (0.95 ** 59 < 0.05), hardly by fewer."""

        def p(n: int) -> float:
            ones = np.ones(n)
            scores = PairedScores(dense=ones, compressed=ones[None], cluster=np.arange(n), low=0, high=1)
            return loss_test(scores, 0.05).p_above

        assert p(50) > 0.05 > p(59)

    def test_seed_quantiles(self) -> None:
        """One source of variance alone gives its own t; the p value inverts the critical distance."""
        seeds = MeanTest(mean=1.0, variance=0.0, df=100, df_above=100, seed_variance=0.04, seed_df=2)
        assert seeds.p_above == pytest.approx(stats.t.sf(5, 2))
        both = MeanTest(mean=1.0, variance=0.03, df=100, df_above=100, seed_variance=0.01, seed_df=2)
        assert both.critical(both.p_above, both.df) == pytest.approx(1.0)
        assert both.p_above + both.p_below == pytest.approx(1)
        assert MeanTest(mean=1.0, variance=0.04, df=50, df_above=50).p_above == pytest.approx(stats.t.sf(5, 50))

    @pytest.mark.parametrize("clusters", [12, 60])
    def test_seeds_that_agree_in_everything_are_one(self, clusters: int) -> None:
        """Their interval is that of a single seed."""
        rng = np.random.default_rng(3)
        dense, cluster = (rng.random(60) < 0.6) * 1.0, np.arange(60) % clusters
        once = np.where(rng.random(60) < 0.2, 1 - dense, dense)

        def interval(compressed: np.ndarray) -> tuple[float, float] | None:
            scores = PairedScores(dense=dense, compressed=compressed, cluster=cluster, low=0.0, high=1.0)
            return loss_bounds(scores, margin=0.05, alpha=0.05)

        alone = interval(once[None])
        for seeds in (2, 3, 8):
            assert interval(np.tile(once, (seeds, 1))) == pytest.approx(alone)

    def test_skewness_can_only_hurt(self) -> None:
        """It takes from "matching" in either direction; "not matching" is not corrected."""
        plain = MeanTest(mean=0.2, variance=0.01, df=20, df_above=20)
        for skewness in (-0.5, 0.5):
            skewed = replace(plain, skewness=skewness)
            assert skewed.p_above >= plain.p_above
            assert skewed.p_below == plain.p_below
        assert replace(plain, skewness=-0.5).p_above > plain.p_above


class TestManyVerdicts:
    def results(self, *verdicts: str) -> list[object]:
        class Result:
            def __init__(self, verdict: str) -> None:
                self.verdict = verdict

        return [Result(verdict) for verdict in verdicts]

    @pytest.mark.parametrize(
        ("verdicts", "overall"),
        [
            (["matching", "matching"], "matching"),
            (["matching", "no signal"], "matching"),
            (["matching", "undecided"], "undecided"),
            (["matching", "incomplete", "undecided"], "incomplete"),
            (["matching", "not matching", "incomplete"], "not matching"),
            (["no signal"], "no signal"),
        ],
    )
    def test_overall(self, verdicts: list[str], overall: str) -> None:
        assert overall_verdict(self.results(*verdicts)) == overall  # type: ignore[arg-type]

    def test_overall_of_nothing(self) -> None:
        with pytest.raises(ConfigError, match="one task or more"):
            overall_verdict([])

    def test_holm_by_hand(self) -> None:
        adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
        assert {k: round(p, 10) for k, (p, _) in adjusted.items()} == {
            "a": 0.04,
            "b": 0.09,
            "c": 0.09,
            "d": 0.025,
            "e": 1.0,
        }
        assert [k for k, (_, rejected) in adjusted.items() if rejected] == ["a", "d"]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_holm_rejects_between_bonferroni_and_nothing(self, p_values: list[float]) -> None:
        named = {str(i): p for i, p in enumerate(p_values)}
        for name, (adjusted, rejected) in holm(named).items():
            assert named[name] <= adjusted <= min(1, len(p_values) * named[name]) + 1e-12
            assert rejected == (adjusted < 0.05)

    def test_fixed_sequence_stops_at_the_first_failure(self) -> None:
        steps = [("0.3", 0.01), ("0.4", 0.04), ("0.5", 0.06), ("0.6", 0.001)]
        assert fixed_sequence(steps) == {"0.3": True, "0.4": True, "0.5": False, "0.6": False}
        with pytest.raises(ConfigError, match="twice"):
            fixed_sequence([("a", 0.1), ("a", 0.1)])

    def test_what_is_not_a_p_value(self) -> None:
        with pytest.raises(ConfigError, match="p value"):
            holm({"a": 1.5})
