"""Tests of a mean of paired scores against 0: one for verdicts, which few losses, clusters and seeds do not fool, and
one for intervals, which are to miss no less often than they say."""

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
    """A mean against 0: its variance over items and over calibration seeds, each with Student's df."""

    mean: float
    variance: float
    df: float  # of the variance over items
    df_above: float | None = None  # what counts instead where the mean is to be shown above 0
    df_below: float | None = None  # and where below
    distance_above: float = 1.0  # how many times as far from 0 the mean has to be then
    distance_below: float = 1.0
    seed_variance: float = 0.0
    seed_df: int = 0
    item_tails: float = 1.0  # how many times the tail of the seeds' quantile that of the items leaves
    skewness: float = 0.0  # of the studentised mean
    least_p_above: float = 0.0  # what p_above is at least, where more is known of the scores than their mean
    least_p_below: float = 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean, over items and seeds."""
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
        """The distance of the mean from 0 that has this one-sided p, skewness aside.

        Each variance gets its own quantile (as Cochran & Cox do for two means): with two or three seeds one
        quantile at Satterthwaite's degrees of freedom errs in up to 8 % of draws instead of 5 %.
        """
        item_tail = tail * self.item_tails / (1 + 2 * (self.item_tails - 1) * tail)  # of a half, a half
        distance = special.stdtrit(self.df if df is None else df, item_tail) ** 2 * self.variance
        if self.seed_variance:
            distance += special.stdtrit(self.seed_df, tail) ** 2 * self.seed_variance
        return math.sqrt(distance)

    def _tail(self, statistic: float, df: float) -> float:
        """Upper-tail p of a statistic in standard errors: the inverse of `critical`."""
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
        """The t statistic, and the same after Hall's cubic correction for skewness (monotone)."""
        if self.standard_error == 0:
            limit = math.copysign(math.inf, self.mean) if self.mean else 0.0
            return limit, limit
        t = self.mean / self.standard_error
        # The cubic flattens further out, where it would hide any effect, however large.
        near = min(max(t, -3.0), 3.0)
        return t, t + self.skewness * near**2 / 3 + self.skewness**2 * near**3 / 27 + self.skewness / 6


class UnobservedMoments(NamedTuple):
    """Scores that did not come up and could have: their mean and mean square."""

    mean: float
    square: float


def mean_test(values: Floats, cluster: Codes, possible: Range) -> MeanTest:
    """Test of a mean against 0 for verdicts: values (seeds, items), each within `possible`, in two clusters or more.

    Losses are rare and clusters few, so a plain t test errs on the generous side: at a loss of exactly the
    margin, 200 items, accuracy 0.75 and nothing gained, it says "matching" in 10 % of draws instead of 5 %,
    because a sample with few losses also shows little variance. Chosen by simulation
    (benchmarks/statistics.py), the less favourable of each pair:

    - variance: cluster-robust CR2 (Bell & McCaffrey 2002), or the score test's, i.e. that of the likeliest
      distribution whose mean *is* 0, over items (times the design effect) and over clusters. For binary
      items on their own this is the matched-pair score test of Tango (1998) and Nam & Blackwelder (2002).
    - statistic, with clusters: t, or t corrected for the skewness of their sums (Hall 1992), of which few
      clusters show too little. Taking it larger than seen makes verdicts that a larger margin undoes.
    - degrees of freedom, with clusters: for a mean above 0 (a loss below r) Bell & McCaffrey's divided by 1 + 4·b², b
      the cluster's own share of its sum, and at least two where there are four (sums of excess kurtosis 8·b² have
      that many instead of normal ones'). All of them err in up to 11 % of draws where most clusters lose
      nothing and a few nearly all; on the other side, where that skewness helps, in 2.6 % at most.
    """
    spread = clustered_mean(values, cluster, max(abs(end) for end in possible))
    low, high = (UnobservedMoments(end, end**2) for end in possible)
    over_items = null_variance(spread.per_item, low, high) / spread.per_item.size * max(1.0, spread.design_effect)
    over_clusters = 0.0
    squares = float((spread.residual**2).sum())
    if spread.grouped and squares > 0:
        least, most = (UnobservedMoments(end, end**2) for end in (float(spread.sums.min()), float(spread.sums.max())))
        over_clusters = null_variance(spread.sums, least, most) * spread.sizes.size * spread.variance / squares
    seeds = len(values)
    return MeanTest(
        mean=spread.mean,
        variance=max(spread.variance, over_items, over_clusters),
        df=spread.df,
        # None of the noise is taken off with two seeds, a sixth with three, almost half with many: half of it
        # throughout errs in 7.3 % of draws with two seeds and 6.0 % with three.
        seed_variance=seed_variance_of(values, cluster).variance((seeds - 2) / (2 * seeds)),
        seed_df=seeds - 1,
        skewness=skewness(spread.residual) if spread.grouped else 0.0,
        df_above=max(spread.df / (1 + 4 * spread.between_share**2), min(spread.df / 2, 2)) if spread.grouped else None,
    )


def score_test(values: Floats, cluster: Codes, low: UnobservedMoments, high: UnobservedMoments) -> MeanTest:
    """Test of a mean against 0 for two-sided intervals: the score test.

    What keeps a verdict from erring where clusters and losses are few makes an interval wider than it says. For binary
    items on their own this is the matched-pair score interval (Tango 1998), with clusters times the design effect. Few
    clusters may well show one below 1, for which their degrees of freedom allow; that the sums of a few agree to the
    last item is luck, so p is never less than a sixth of what the same items would have on their own (the 95 %
    interval is no narrower than that one's 70 %). The score test knows how skewed items are, so of the skewness of
    cluster sums only what goes beyond that counts. `low` and `high` are what items that were not seen could have at
    worst and at best.

    The numbers were chosen by simulation (benchmarks/statistics.py), so that intervals hold the truth in 93 to 97 %
    whether clusters and seeds differ or not, which few of them do not tell:

    - clusters: where a few lose much, those asked spread too little when their mean is too high and too much when it
      is too low. With b as in `mean_test`, a mean has to be 1 + b / 6 times as far above 0, at Bell & McCaffrey's
      degrees of freedom divided by 1 + b² / 3. Below 0 it is 1 / (1 + b / 16), and all but the first degree of freedom
      count (1 + b²)³ times.
    - k seeds: 1 - 1.71 · 0.74^k of the item noise is taken off their spread, and items leave a larger tail
      (`_item_tails`).
    """
    spread = clustered_mean(values, cluster, max(abs(low.mean), abs(high.mean)))
    items, seeds = spread.per_item.size, len(values)
    over_items = null_variance(spread.per_item, low, high) / items
    between = seed_variance_of(values, cluster)
    variance = over_items or spread.sampling
    alone = MeanTest(
        mean=spread.mean,
        variance=variance,
        df=items - 1,
        seed_variance=between.variance(1 - 1.71 * 0.74**seeds),
        seed_df=seeds - 1,
        item_tails=_item_tails(between, seeds, variance),
    )
    if not spread.grouped:
        return alone
    own, variance = spread.between_share, over_items * spread.design_effect or spread.variance
    return replace(
        alone,
        variance=variance,
        item_tails=_item_tails(between, seeds, variance),
        df=spread.df,
        df_above=spread.df / (1 + own**2 / 3),
        df_below=1 + (spread.df - 1) * (1 + own**2) ** 3,
        distance_above=1 + own / 6,
        distance_below=1 / (1 + own / 16),
        skewness=_beyond(skewness(spread.residual), skewness(spread.item_residual)),
        least_p_above=alone.p_above / 6,
        least_p_below=alone.p_below / 6,
    )


def _item_tails(between: SeedVariance, seeds: int, variance: float) -> float:
    """How many times the tail of the seeds' quantile that of the items may leave: 1 + 2.5 · w / (k - 1).

    Both quantiles at their full size, added in squares, would be too far out; where seeds cannot matter (w is their
    share of the 95 % interval's squared distance, at the spread they show and the noise in it) items count in full.
    """
    if seeds == 1:
        return 1.0
    of_seeds = special.stdtrit(seeds - 1, 0.025) ** 2 * (between.seen + between.noise)
    of_items = special.ndtri(0.025) ** 2 * variance
    return 1 + 2.5 / (seeds - 1) * float(of_seeds / (of_seeds + of_items)) if of_seeds else 1.0


def _beyond(value: float, other: float) -> float:
    """What of a value goes beyond another in its own direction."""
    known = max(0.0, math.copysign(1.0, value) * other)
    return math.copysign(max(0.0, abs(value) - known), value)


def null_variance(values: Floats, low: UnobservedMoments, high: UnobservedMoments) -> float:
    """Variance of a single value under the likeliest distribution whose mean is 0; 0.0 where there is none.

    That distribution is p_i = 1 / (n·(1 + λ·t_i)) (empirical likelihood, Owen 1988) on the values that were seen.
    Where they do not reach (λ at its limit) the mass that is left goes to `low` or `high`, which were not.
    """
    unit = max(-low.mean, high.mean)  # 1 / high has no number where scores are as small as floats can be
    if not low.mean < 0 < high.mean or np.isinf(unit):
        return 0.0
    value, count = np.unique(values / unit, return_counts=True)
    weight = count / values.size
    below, above = -1 / max(high.mean / unit, value[-1]), -1 / min(low.mean / unit, value[0])
    for _ in range(50):
        tilt = (below + above) / 2
        mean = float((weight * value / np.maximum(1 + tilt * value, 1e-12)).sum())
        below, above = (tilt, above) if mean > 0 else (below, tilt)
    probability = weight / np.maximum(1 + tilt * value, 1e-12)
    missing = max(0.0, 1 - float(probability.sum()))
    unseen = low if tilt > 0 else high
    seen = unit**2 * float((probability * value**2).sum())
    return seen + missing * unseen.square
