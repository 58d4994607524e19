"""Tests of a mean of paired scores against 0.

`mean_test` is for verdicts: it has to stay valid where losses, clusters and seeds are few. `score_test` is for
intervals: they have to cover the truth as often as they claim, and no more often.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from llmkick.statistics.variance import (
    Codes,
    Floats,
    Range,
    SeedVariance,
    clustered_mean,
    seed_variance_of,
    skewness,
)


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """A mean tested against 0: its variance over items and over calibration seeds, each with its degrees of freedom."""

    mean: float
    variance: float
    df: float  # of the variance over items
    df_above: float | None = None  # replaces df in p_above
    df_below: float | None = None  # replaces df in p_below
    distance_above: float = 1.0  # divides the statistic in p_above
    distance_below: float = 1.0  # divides the statistic in p_below
    seed_variance: float = 0.0
    seed_df: int = 0
    item_tails: float = 1.0  # tail of the item quantile, relative to the tail of the seed quantile
    skewness: float = 0.0  # of the studentised mean
    least_p_above: float = 0.0  # lower bound of p_above, from what is known beyond the mean
    least_p_below: float = 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, over items and seeds."""
        return math.sqrt(self.variance + self.seed_variance)

    @property
    def p_above(self) -> float:
        """One-sided p of H0: mean ≤ 0."""
        statistic = min(self._statistics()) / self.distance_above
        return max(self._tail(statistic, self.df_above or self.df), self.least_p_above)

    @property
    def p_below(self) -> float:
        """One-sided p of H0: mean ≥ 0."""
        statistic = -max(self._statistics()) / self.distance_below
        return max(self._tail(statistic, self.df_below or self.df), self.least_p_below)

    def critical(self, tail: float, df: float | None = None) -> float:
        """The distance of the mean from 0 that has this one-sided p, without the correction for skewness.

        Each variance gets its own quantile (as Cochran & Cox do for two means). With two or three seeds, a single
        quantile at Satterthwaite's degrees of freedom errs in up to 8 % of draws instead of 5 %.
        """
        # A tail of a half stays a half.
        item_tail = tail * self.item_tails / (1 + 2 * (self.item_tails - 1) * tail)
        distance = special.stdtrit(self.df if df is None else df, item_tail) ** 2 * self.variance
        if self.seed_variance:
            distance += special.stdtrit(self.seed_df, tail) ** 2 * self.seed_variance
        return math.sqrt(distance)

    def _tail(self, statistic: float, df: float) -> float:
        """Upper-tail p of a statistic in units of the standard error: the inverse of `critical`."""
        if not self.seed_variance:
            item_tail = float(special.stdtr(df, -abs(statistic)))
            p = item_tail / (self.item_tails - 2 * (self.item_tails - 1) * item_tail)
        else:
            distance = abs(statistic) * self.standard_error
            low, high = math.log(1e-100), math.log(0.5)
            log_p = low
            if distance < self.critical(math.exp(low), df):
                log_p = float(optimize.brentq(lambda x: self.critical(math.exp(x), df) - distance, low, high))
            p = math.exp(log_p)
        return p if statistic > 0 else 1 - p

    def _statistics(self) -> Range:
        """The t statistic, without and with Hall's cubic correction for skewness (monotone)."""
        if self.standard_error == 0:
            limit = math.copysign(math.inf, self.mean) if self.mean else 0.0
            return limit, limit
        t = self.mean / self.standard_error
        # Further out the cubic flattens and would hide any effect, however large.
        near = min(max(t, -3.0), 3.0)
        return t, t + self.skewness * near**2 / 3 + self.skewness**2 * near**3 / 27 + self.skewness / 6


class UnobservedMoments(NamedTuple):
    """Mean and mean square of scores that are possible but were not observed."""

    mean: float
    square: float


def mean_test(values: Floats, cluster: Codes, possible: Range) -> MeanTest:
    """Test of a mean against 0 for verdicts: values (seeds, items), each in `possible`, in two clusters or more.

    Losses are rare and clusters few, so a plain t test is too generous: at a loss of exactly the margin, 200 items,
    accuracy 0.75 and nothing gained, it says "matching" in 10 % of draws instead of 5 %, because a sample with few
    losses also shows little variance. The test therefore takes the less favourable of each pair below, chosen by
    simulation (benchmarks/statistics.py):

    - Variance: cluster-robust CR2 (Bell & McCaffrey 2002), or the variance of the score test, which is that of the
      likeliest distribution whose mean *is* 0, over items (times the design effect) and over clusters. For independent
      binary items this is the matched-pair score test of Tango (1998) and Nam & Blackwelder (2002).
    - Statistic, with clusters: t, or t corrected for the skewness of the cluster sums (Hall 1992). A few clusters
      underestimate that skewness; to correct for more than is observed would make verdicts that a larger margin undoes.
    - Degrees of freedom, with clusters, for a mean above 0 (a loss below r): Bell & McCaffrey's divided by 1 + 4·b²,
      where b is `between_share`, and at least two where there are four (sums with an excess kurtosis of 8·b² have
      that many). Without the division the test errs in up to 11 % of draws where most clusters lose nothing and a few
      nearly everything; on the other side, where that skewness helps, it errs in 2.6 % at most.
    """
    estimate = clustered_mean(values, cluster, max(abs(end) for end in possible))
    low, high = (UnobservedMoments(end, end**2) for end in possible)
    over_items = null_variance(estimate.per_item, low, high) / estimate.per_item.size * max(1.0, estimate.design_effect)
    over_clusters = 0.0
    squares = float((estimate.residual**2).sum())
    if estimate.clustered and squares > 0:
        least, most = (
            UnobservedMoments(end, end**2) for end in (float(estimate.sums.min()), float(estimate.sums.max()))
        )
        over_clusters = null_variance(estimate.sums, least, most) * estimate.sizes.size * estimate.variance / squares
    seeds = len(values)
    return MeanTest(
        mean=estimate.mean,
        variance=max(estimate.variance, over_items, over_clusters),
        df=estimate.df,
        # With two seeds none of the item noise is subtracted, with three a sixth, with many almost half. Subtracting
        # half of it for any number errs in 7.3 % of draws with two seeds and in 6.0 % with three.
        seed_variance=seed_variance_of(values, cluster).variance((seeds - 2) / (2 * seeds)),
        seed_df=seeds - 1,
        skewness=skewness(estimate.residual) if estimate.clustered else 0.0,
        df_above=max(estimate.df / (1 + 4 * estimate.between_share**2), min(estimate.df / 2, 2))
        if estimate.clustered
        else None,
    )


def score_test(values: Floats, cluster: Codes, low: UnobservedMoments, high: UnobservedMoments) -> MeanTest:
    """Test of a mean against 0 for two-sided intervals: the score test.

    The caution that keeps `mean_test` valid where clusters and losses are few would make an interval too wide. For
    independent binary items this is the matched-pair score interval (Tango 1998); clusters multiply its variance by the
    design effect. A few clusters may well show a design effect below 1, for which their degrees of freedom allow. That
    the sums of a few clusters agree to the last item is luck, so p is never less than a sixth of what the same items
    would have if they were independent (the 95 % interval is no narrower than the 70 % interval of independent items).
    The score test already accounts for the skewness of items, so only the excess skewness of cluster sums counts.
    `low` and `high` are the moments of items that were not observed, at their worst and at their best.

    The numbers were chosen by simulation (benchmarks/statistics.py), so that intervals cover the truth in 93 to 97 % of
    draws whether clusters and seeds differ or not, which a few of them cannot tell:

    - Clusters: where a few lose much, a sample has too small a variance when its mean is too high and too large a
      variance when its mean is too low. With b = `between_share`, a mean has to be 1 + b / 6 times as far above 0, at
      Bell & McCaffrey's degrees of freedom divided by 1 + b² / 3. Below 0 the factor is 1 / (1 + b / 16), and all but
      the first degree of freedom count (1 + b²)³ times.
    - k seeds: 1 − 1.71 · 0.74^k of the item noise is subtracted from the variance over seeds, and items leave a larger
      tail (`_item_tails`).
    """
    estimate = clustered_mean(values, cluster, max(abs(low.mean), abs(high.mean)))
    items, seeds = estimate.per_item.size, len(values)
    over_items = null_variance(estimate.per_item, low, high) / items
    between = seed_variance_of(values, cluster)
    variance = over_items or estimate.independent_variance
    independent = MeanTest(
        mean=estimate.mean,
        variance=variance,
        df=items - 1,
        seed_variance=between.variance(1 - 1.71 * 0.74**seeds),
        seed_df=seeds - 1,
        item_tails=_item_tails(between, seeds, variance),
    )
    if not estimate.clustered:
        return independent
    share, variance = estimate.between_share, over_items * estimate.design_effect or estimate.variance
    return replace(
        independent,
        variance=variance,
        item_tails=_item_tails(between, seeds, variance),
        df=estimate.df,
        df_above=estimate.df / (1 + share**2 / 3),
        df_below=1 + (estimate.df - 1) * (1 + share**2) ** 3,
        distance_above=1 + share / 6,
        distance_below=1 / (1 + share / 16),
        skewness=_beyond(skewness(estimate.residual), skewness(estimate.item_residual)),
        least_p_above=independent.p_above / 6,
        least_p_below=independent.p_below / 6,
    )


def _item_tails(between: SeedVariance, seeds: int, variance: float) -> float:
    """The tail of the item quantile, relative to that of the seed quantile: 1 + 2.5 · w / (k − 1).

    The sum of squares of both full quantiles would be too far out. w is the share of the seeds in the squared width of
    the 95 % interval, computed from their observed variance and its item noise; at w = 0 items count in full.
    """
    if seeds == 1:
        return 1.0
    of_seeds = special.stdtrit(seeds - 1, 0.025) ** 2 * (between.observed + between.item_noise)
    of_items = special.ndtri(0.025) ** 2 * variance
    return 1 + 2.5 / (seeds - 1) * float(of_seeds / (of_seeds + of_items)) if of_seeds else 1.0


def _beyond(value: float, other: float) -> float:
    """The part of a value that exceeds another in its own direction."""
    accounted = max(0.0, math.copysign(1.0, value) * other)
    return math.copysign(max(0.0, abs(value) - accounted), value)


def null_variance(values: Floats, low: UnobservedMoments, high: UnobservedMoments) -> float:
    """Variance of a single value under the likeliest distribution whose mean is 0 (0.0: none).

    That distribution is p_i = 1 / (n·(1 + λ·t_i)) on the observed values (empirical likelihood, Owen 1988). Where
    these do not suffice (λ at its limit), the remaining mass goes to `low` or `high`, which were not observed.
    """
    unit = max(-low.mean, high.mean)  # 1 / high would overflow for the smallest floats
    if not low.mean < 0 < high.mean or np.isinf(unit):
        return 0.0
    value, count = np.unique(values / unit, return_counts=True)
    weight = count / values.size
    limits = float(-1 / max(high.mean / unit, value[-1])), float(-1 / min(low.mean / unit, value[0]))
    tilt = _tilt_to_zero(weight * value, value, limits)
    probability = weight / np.maximum(1 + tilt * value, 1e-12)
    missing = max(0.0, 1 - float(probability.sum()))
    unobserved = low if tilt > 0 else high
    observed = unit**2 * float((probability * value**2).sum())
    return observed + missing * unobserved.square


def _tilt_to_zero(weighted: Floats, value: Floats, limits: Range) -> float:
    """λ within limits with Σ w_i·t_i / (1 + λ·t_i) = 0, where that sum falls as λ grows, by 50 bisections."""
    below, above = limits
    tilt = (below + above) / 2
    # Right or wrong answers have four different values at most, and an array operation costs more than their sum.
    # numpy adds fewer than eight values from left to right: both loops give the same bits.
    terms = list(zip(weighted.tolist(), value.tolist(), strict=True)) if value.size < 8 else None
    for _ in range(50):
        tilt = (below + above) / 2
        if terms is None:
            mean = float(np.add.reduce(weighted / np.maximum(1 + tilt * value, 1e-12)))
        else:
            mean = 0.0
            for numerator, term in terms:
                denominator = 1 + tilt * term
                mean += numerator / (denominator if denominator > 1e-12 else 1e-12)
        below, above = (tilt, above) if mean > 0 else (below, tilt)
    return tilt
