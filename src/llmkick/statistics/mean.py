"""The test of a mean of paired scores against 0. Verdicts and bounds both come from it, so they cannot disagree."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from llmkick.statistics.variance import Codes, Floats, Range, clustered_mean, seed_variance_of, skewness

# How much caution large clusters need where few losses were seen; see `mean_test`.
_CLUSTER_CAUTION, _LEAST_DF = 4, 2
# Beyond this many standard errors Hall's cubic flattens and would hide any effect, however large.
_CUBIC_LIMIT = 3.0
# Halvings of an interval that leave less of it than a float can tell.
_BISECTIONS = 50


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """A mean tested against 0: its variance over items and over calibration seeds, each with its degrees of freedom."""

    mean: float
    variance: float
    df: float  # of the variance over items
    df_above: float  # replaces df in p_above
    seed_variance: float = 0.0
    seed_df: float = 0
    skewness: float = 0.0  # of the studentised mean
    least_p_above: float = 0.0  # lower bound of p_above, from what is known beyond the mean
    least_p_below: float = 0.0  # the same for p_below

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, over items and seeds."""
        return math.sqrt(self.variance + self.seed_variance)

    @property
    def seed_share(self) -> float:
        """The part of the squared standard error that is between calibration seeds."""
        return self.seed_variance / self.standard_error**2 if self.seed_variance else 0.0

    @property
    def p_above(self) -> float:
        """One-sided p of H0: mean ≤ 0."""
        t = self._statistic()
        return max(self._tail(min(t, self._without_skewness(t)), self.df_above), self.least_p_above)

    @property
    def p_below(self) -> float:
        """One-sided p of H0: mean ≥ 0."""
        return max(self._tail(-self._statistic(), self.df), self.least_p_below)

    def critical(self, tail: float, df: float) -> float:
        """The distance of the mean from 0 that has this one-sided p, without the correction for skewness.

        Each variance gets its own quantile (as Cochran & Cox do for two means). With two or three seeds, a single
        quantile at Satterthwaite's degrees of freedom errs in up to 8 % of draws instead of 5 %.
        """
        distance = special.stdtrit(df, tail) ** 2 * self.variance
        if self.seed_variance:
            distance += special.stdtrit(self.seed_df, tail) ** 2 * self.seed_variance
        return math.sqrt(distance)

    def _tail(self, statistic: float, df: float) -> float:
        """Upper-tail p of a statistic in units of the standard error: the inverse of `critical`."""
        if not self.seed_variance:
            return float(special.stdtr(df, -statistic))
        distance = abs(statistic) * self.standard_error
        low, high = math.log(1e-100), math.log(0.5)
        log_p = low
        if distance < self.critical(math.exp(low), df):
            log_p = float(optimize.brentq(lambda x: self.critical(math.exp(x), df) - distance, low, high))
        p = math.exp(log_p)
        return p if statistic > 0 else 1 - p

    def _statistic(self) -> float:
        """The mean in standard errors."""
        if self.standard_error == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.standard_error

    def _without_skewness(self, t: float) -> float:
        """The statistic with Hall's cubic correction for skewness, which is monotone in t (Hall 1992)."""
        near = min(max(t, -_CUBIC_LIMIT), _CUBIC_LIMIT)
        return t + self.skewness * near**2 / 3 + self.skewness**2 * near**3 / 27 + self.skewness / 6


class UnobservedMoments(NamedTuple):
    """Mean and mean square of scores that are possible but were not observed."""

    mean: float
    square: float


def mean_test(
    values: Floats,
    cluster: Codes,
    unobserved: tuple[UnobservedMoments, UnobservedMoments] | None = None,
    *,
    binary: bool = False,
) -> MeanTest:
    """Test of a mean against 0: values (seeds, items) in two clusters or more.

    Losses are rare and clusters few, so a plain t test is too generous: at a loss of exactly the margin, 200 items,
    accuracy 0.75 and nothing gained, it says "matching" in 10 % of draws instead of 5 %, because a sample with few
    losses also shows little variance. The test therefore takes the less favourable of each pair below; the figures are
    from benchmarks/statistics.py, which also tries generators that served to choose nothing.

    - Variance: cluster-robust CR2 (Bell & McCaffrey 2002), or that of the score test: of the likeliest distribution
      whose mean *is* 0, to which `unobserved` contributes values below and above 0 that no item showed, times the
      design effect. For independent right-or-wrong items this is the matched-pair score test of Tango (1998) and
      Nam & Blackwelder (2002). Without `unobserved` (a range without ends), CR2 alone.
    - Statistic, for a mean above 0 (a loss below r): t, or t corrected for the skewness of the sums over clusters (Hall
      1992). Right-or-wrong (`binary`) independent items need no correction: the score test accounts for it.
    - Degrees of freedom, with clusters, for a mean above 0: Bell & McCaffrey's divided by 1 + 4·b², where b is
      `between_share`, and at least two where there are four (sums with an excess kurtosis of 8·b² have that many).
      Without the division the test errs in up to 11 % of draws where most clusters lose nothing and a few nearly
      everything; on the other side, where that skewness helps, it errs in less than 3 %.

    Seeds: with two none of the item noise is subtracted from the variance between them, with three a sixth, with many
    almost half. Subtracting half of it for any number errs in 7.3 % of draws with two seeds and in 6.0 % with three.
    """
    scale = math.inf if unobserved is None else max(abs(moments.mean) for moments in unobserved)
    estimate = clustered_mean(values, cluster, scale)
    variance = estimate.variance
    if unobserved is not None:
        over_items = null_variance(estimate.per_item, *unobserved) / estimate.per_item.size
        variance = max(variance, over_items * (max(1.0, estimate.design_effect) if estimate.clustered else 1.0))
    seeds = len(values)
    cautious = max(estimate.df / (1 + _CLUSTER_CAUTION * estimate.between_share**2), min(estimate.df / 2, _LEAST_DF))
    return MeanTest(
        mean=estimate.mean,
        variance=variance,
        df=estimate.df,
        df_above=cautious if estimate.clustered else estimate.df,
        seed_variance=seed_variance_of(values, cluster).variance((seeds - 2) / (2 * seeds)),
        seed_df=seeds - 1,
        skewness=skewness(estimate.residual) if estimate.clustered or not binary else 0.0,
    )


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
    """λ within limits with Σ w_i·t_i / (1 + λ·t_i) = 0, where that sum falls as λ grows; a limit if none is between.

    Right or wrong answers have four different values at most. An array operation costs more than their sum, so they
    are bisected without one.
    """
    if value.size < 8:
        return _tilt_of_few(weighted, value, limits)

    def mean(tilt: float) -> float:
        return float(np.add.reduce(weighted / np.maximum(1 + tilt * value, 1e-12)))

    below, above = limits
    if mean(below) <= 0:
        return below
    if mean(above) > 0:
        return above
    return float(optimize.brentq(mean, below, above, xtol=(above - below) * 0.5**_BISECTIONS))


def _tilt_of_few(weighted: Floats, value: Floats, limits: Range) -> float:
    below, above = limits
    tilt = (below + above) / 2
    terms = list(zip(weighted.tolist(), value.tolist(), strict=True))
    for _ in range(_BISECTIONS):
        tilt = (below + above) / 2
        mean = 0.0
        for numerator, term in terms:
            denominator = 1 + tilt * term
            mean += numerator / (denominator if denominator > 1e-12 else 1e-12)
        below, above = (tilt, above) if mean > 0 else (below, tilt)
    return tilt
