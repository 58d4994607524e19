"""The test of a mean of paired scores against 0: variances that few losses, clusters and seeds do not fool."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """A mean against 0: its variance over items and over calibration seeds, each with Student's df."""

    mean: float
    variance: float
    df: float
    seed_variance: float = 0.0
    seed_df: int = 0
    skewness: float = 0.0  # of the studentised mean
    caution: float = 1.0  # by what the df of the variance over items are divided when the mean is to be above 0
    score_variance: float = 0.0  # for intervals, over items; 0 where the range of the values is not bounded
    score_seed_variance: float = 0.0  # for intervals, over calibration seeds
    least_p_above: float = 0.0  # what p_above is at least, where more is known of the scores than their mean

    @property
    def standard_error(self) -> float:
        """Of the mean, over items and seeds."""
        return math.sqrt(self.variance + self.seed_variance)

    @property
    def cautious_df(self) -> float:
        """Degrees of freedom where the mean is to be shown above 0."""
        return self.df / self.caution

    @property
    def p_above(self) -> float:
        """One-sided p of H0: mean ≤ 0."""
        return max(self._tail(min(self._statistics()), self.cautious_df), self.least_p_above)

    @property
    def p_below(self) -> float:
        """One-sided p of H0: mean ≥ 0."""
        return self._tail(-max(self._statistics()), self.df)

    @property
    def interval_p(self) -> Range:
        """For a two-sided interval that inverts this test: p below and p above, each against half of its alpha.

        What keeps verdicts from erring with few clusters and few losses makes an interval wider than it says. Its own
        are the p of the matched-pair score interval (Tango 1998; the score test's variance and nothing else), but
        never less than half of the verdict's: a margin outside the interval is one whose verdict stands.
        """
        score = replace(
            self,
            variance=self.score_variance or self.variance,
            seed_variance=self.score_seed_variance,
            skewness=0.0,
            caution=1.0,
            least_p_above=0.0,
        )
        return max(score.p_below, self.p_below / 2), max(score.p_above, self.p_above / 2)

    def critical(self, tail: float, df: float | None = None) -> float:
        """The distance of the mean from 0 that has this one-sided p, skewness aside.

        Each variance gets its own quantile (as Cochran & Cox do for two means): with two or three seeds one
        quantile at Satterthwaite's degrees of freedom errs in up to 8 % of draws instead of 5 %.
        """
        distance = special.stdtrit(self.df if df is None else df, tail) ** 2 * self.variance
        if self.seed_variance:
            distance += special.stdtrit(self.seed_df, tail) ** 2 * self.seed_variance
        return math.sqrt(distance)

    def _tail(self, statistic: float, df: float) -> float:
        """Upper-tail p of a statistic in standard errors: the inverse of `critical`."""
        if not self.seed_variance:
            return float(special.stdtr(df, -statistic))
        distance = abs(statistic) * self.standard_error
        low, high = math.log(1e-100), math.log(0.5)
        if distance >= self.critical(math.exp(low), df):
            log_p = low
        else:
            log_p = float(optimize.brentq(lambda x: self.critical(math.exp(x), df) - distance, low, high))
        return math.exp(log_p) if statistic > 0 else 1 - math.exp(log_p)

    def _statistics(self) -> Range:
        """The t statistic, and the same after Hall's cubic correction for skewness (monotone)."""
        if self.standard_error == 0:
            limit = math.copysign(math.inf, self.mean) if self.mean else 0.0
            return limit, limit
        t = self.mean / self.standard_error
        # The cubic flattens further out, where it would hide any effect, however large.
        near = min(max(t, -3.0), 3.0)
        return t, t + self.skewness * near**2 / 3 + self.skewness**2 * near**3 / 27 + self.skewness / 6


def mean_test(values: Floats, cluster: Codes, possible: Range) -> MeanTest:
    """Test of a mean against 0: values (seeds, items), each within `possible`, in two clusters or more.

    Losses are rare and clusters few, so a plain t test errs on the generous side: at a loss of exactly the
    margin, 200 items, accuracy 0.75 and nothing gained, it says "matching" in 10 % of draws instead of 5 %,
    because a sample with few losses also shows little variance. Chosen by simulation
    (benchmarks/statistics.py), the less favourable of each pair:

    - variance: cluster-robust CR2 (Bell & McCaffrey 2002), or the score test's, i.e. that of the likeliest
      distribution whose mean *is* 0, over items (times the design effect) and over clusters. For binary
      items on their own this is the matched-pair score test of Tango (1998) and Nam & Blackwelder (2002).
    - statistic, with clusters: t, or t corrected for the skewness of their sums (Hall 1992), of which few
      clusters show too little. Taking it larger than seen makes verdicts that a larger margin undoes.
    - degrees of freedom, with clusters: for a mean above 0 (a loss below r) half of Bell & McCaffrey's, what sums
      of excess kurtosis 2 have instead of normal ones. All of them err in up to 6.3 % of draws where clusters lose
      unevenly; on the other side, where that skewness helps, in 2.6 % at most.
    """
    per_item = values.mean(axis=0)
    items = per_item.size
    sizes = np.bincount(cluster).astype(np.float64)
    sums = cluster_sums(values, cluster).mean(axis=0)
    scale = max(abs(end) for end in possible)
    # Equal values differ by rounding, and ratios of such differences would mean nothing.
    rounding = 1e-12 * items * (scale if math.isfinite(scale) else float(np.abs(per_item).max()))
    mean = float(_unless_tiny(per_item.sum(), rounding)) / items
    residual = _unless_tiny(sums - sizes * mean, rounding)
    squares = float((residual**2).sum())
    sampling = float((_unless_tiny(per_item - mean, rounding) ** 2).sum()) / (items - 1) / items
    variance, df = _cluster_variance(residual, sizes, sampling)
    design_effect = max(1.0, variance / sampling) if sampling > 0 else 1.0
    over_items = null_variance(per_item, possible) / items * design_effect
    over_clusters, skewness = 0.0, 0.0
    over_seeds = _seed_variances(values, cluster) if len(values) > 1 else (0.0, 0.0)
    if sizes.max() > 1 and squares > 0:
        over_clusters = null_variance(sums, (sums.min(), sums.max())) * sizes.size * variance / squares
        skewness = float((residual**3).sum()) / squares**1.5
    return MeanTest(
        mean=mean,
        variance=max(variance, over_items, over_clusters),
        df=df,
        seed_variance=over_seeds[0],
        seed_df=len(values) - 1,
        skewness=skewness,
        caution=2.0 if sizes.max() > 1 else 1.0,
        score_variance=over_items,
        score_seed_variance=over_seeds[1],
    )


def _unless_tiny(values: Floats, limit: float) -> Floats:
    return np.where(np.abs(values) <= limit, 0.0, values)


def cluster_sums(values: Floats, cluster: Codes) -> Floats:
    """(rows, items) → (rows, clusters)."""
    return np.stack([np.bincount(cluster, row) for row in values])


def _cluster_variance(residual: Floats, sizes: Floats, sampling: float) -> tuple[float, float]:
    """CR2 variance of a mean and its Bell-McCaffrey degrees of freedom; residual sums and sizes: (clusters,).

    Working model: equal correlation of the items within a cluster, as large as the data say. With
    independent items of equal cluster size this is exactly the t test on cluster means.
    """
    items = sizes.sum()
    share = sizes / items
    slack = 1 / (1 - share)
    raw = float((residual**2 * slack).sum()) / items**2
    excess = float((sizes**2).sum()) / items - 1
    correlation = min(1.0, max(0.0, raw / sampling - 1) / excess) if sampling > 0 and excess > 0 else 0.0
    # Var of a cluster's sum under the model, then of the scaled residuals: M_gg and Σ M_gk² in closed form.
    own = sizes * (1 + correlation * (sizes - 1))
    total = own.sum()
    off = share**2 * total - 2 * share * own
    diagonal = (own + off) * slack
    aa, bb, ab = (float((x * slack).sum()) for x in (own**2, share**2, own * share))
    every = 2 * aa * bb + total**2 * bb**2 + 2 * ab**2 - 4 * total * ab * bb
    frobenius = every - float(((off * slack) ** 2).sum()) + float((diagonal**2).sum())
    trace = float(diagonal.sum())
    return raw * float(total) / trace, trace**2 / frobenius


def _seed_variances(values: Floats, cluster: Codes) -> Range:
    """What the choice of seeds adds to the variance of the mean, for verdicts and for intervals: (seeds, items) → two.

    Seeds cross with clusters, so the spread of their means holds item noise that the cluster variance counts
    already. For verdicts a share of (seeds − 2) / 2·seeds of that noise is taken off: none of it with two seeds, a
    sixth with three, almost half with many. Half of it throughout errs in 7.3 % of draws with two seeds and 6.0 % with
    three. For intervals it is (seeds − 1) / seeds, half of it with two seeds and nearly all with many.
    """
    seeds, items = values.shape
    seed_means = values.mean(axis=1)
    sums = cluster_sums(values - seed_means[:, None], cluster)
    interaction = sums - sums.mean(axis=0)
    clusters: int = sums.shape[1]
    noise = float((interaction**2).sum()) / items**2 / (seeds * (seeds - 1)) * clusters / (clusters - 1)
    spread = float(seed_means.var(ddof=1)) / seeds
    return max(0.0, spread - noise * (seeds - 2) / (2 * seeds)), max(0.0, spread - noise * (seeds - 1) / seeds)


def null_variance(values: Floats, possible: Range) -> float:
    """Variance of a single value under the likeliest distribution on `possible` whose mean is 0.

    That distribution is p_i = 1 / (n·(1 + λ·t_i)) (empirical likelihood, Owen 1988). What mass is left when λ
    is at its limit sits on the end of `possible` that was never observed.
    """
    if not possible[0] < 0 < possible[1] or np.isinf(possible[1] - possible[0]):
        return 0.0
    unit = max(-possible[0], possible[1])  # 1 / high has no number where scores are as small as floats can be
    low, high = possible[0] / unit, possible[1] / unit
    value, count = np.unique(values / unit, return_counts=True)
    weight = count / values.size
    below, above = -1 / high, -1 / low
    for _ in range(40):
        tilt = (below + above) / 2
        mean = float((weight * value / np.maximum(1 + tilt * value, 1e-12)).sum())
        below, above = (tilt, above) if mean > 0 else (below, tilt)
    probability = weight / np.maximum(1 + tilt * value, 1e-12)
    missing = max(0.0, 1 - float(probability.sum()))
    return unit**2 * (float((probability * value**2).sum()) + missing * (low if tilt > 0 else high) ** 2)
