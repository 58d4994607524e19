"""How far a mean of paired scores may be from the truth, by what its items, their clusters and the seeds show."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Range = tuple[float, float]

# The correlation of items by which the size of clusters tells how much of their sums is the clusters' own.
_CORRELATION = 0.1


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean over items and how far it spreads: CR2 variance, its degrees of freedom, and what they are made from."""

    per_item: Floats  # (items,), means over seeds
    item_residual: Floats  # (items,), the same less their mean
    sums: Floats  # (clusters,)
    sizes: Floats  # (clusters,)
    residual: Floats  # (clusters,), sums less what their sizes lead to expect
    mean: float
    sampling: float  # the variance if items were on their own
    variance: float
    df: float

    @property
    def grouped(self) -> bool:
        """Whether any cluster has two items."""
        return bool(self.sizes.max() > 1)

    @property
    def design_effect(self) -> float:
        """How many times the variance is that of items on their own; 1 where those do not vary."""
        return self.variance / self.sampling if self.sampling > 0 else 1.0

    @property
    def between_share(self) -> float:
        """The share of the variance of a cluster's sum that is the cluster's and not its items', by its size alone.

        At a correlation of 0.1 within clusters, for the cluster that an item is in on average. What clusters show of
        their own correlation tells too little: few that lose much are easily not among those asked.
        """
        size = float((self.sizes**2).sum() / self.sizes.sum())
        return size * _CORRELATION / (1 + (size - 1) * _CORRELATION)


def clustered_mean(values: Floats, cluster: Codes, scale: float) -> ClusteredMean:
    """Of the mean of values (seeds, items); scale: the largest absolute value that a score may have."""
    per_item = values.mean(axis=0)
    items = per_item.size
    sizes = np.bincount(cluster).astype(np.float64)
    sums = cluster_sums(values, cluster).mean(axis=0)
    # Equal values differ by rounding, and ratios of such differences would mean nothing.
    rounding = 1e-12 * items * (scale if math.isfinite(scale) else float(np.abs(per_item).max()))
    mean = float(_unless_tiny(per_item.sum(), rounding)) / items
    residual = _unless_tiny(sums - sizes * mean, rounding)
    item_residual = _unless_tiny(per_item - mean, rounding)
    sampling = float((item_residual**2).sum()) / (items - 1) / items
    variance, df = _cluster_variance(residual, sizes, sampling)
    return ClusteredMean(
        per_item=per_item,
        item_residual=item_residual,
        sums=sums,
        sizes=sizes,
        residual=residual,
        mean=mean,
        sampling=sampling,
        variance=variance,
        df=df,
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


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """How far the means of calibration seeds lie apart, as a variance of their mean; zeros with a single seed."""

    seen: float
    noise: float  # what of it the noise of items explains, which the variance over items counts already

    def variance(self, share: float) -> float:
        """What the choice of seeds adds, less this share of the noise."""
        return max(0.0, self.seen - share * self.noise)


def seed_variance_of(values: Floats, cluster: Codes) -> SeedVariance:
    """Of values (seeds, items). Seeds cross with clusters."""
    seeds, items = values.shape
    if seeds == 1:
        return SeedVariance(seen=0.0, noise=0.0)
    seed_means = values.mean(axis=1)
    sums = cluster_sums(values - seed_means[:, None], cluster)
    interaction = sums - sums.mean(axis=0)
    clusters: int = sums.shape[1]
    noise = float((interaction**2).sum()) / items**2 / (seeds * (seeds - 1)) * clusters / (clusters - 1)
    return SeedVariance(seen=float(seed_means.var(ddof=1)) / seeds, noise=noise)


def skewness(residual: Floats) -> float:
    """Of the studentised sum of these."""
    largest = float(np.abs(residual).max())
    if largest == 0:
        return 0.0
    unit = residual / largest  # cubes have no number where scores are as small as floats can be
    return float((unit**3).sum() / (unit**2).sum() ** 1.5)
