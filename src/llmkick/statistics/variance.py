"""Variance of a mean of paired scores: over items, over clusters of items, and over calibration seeds."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Range = tuple[float, float]

# Assumed correlation of items within a cluster; see `ClusteredMean.between_share`.
_CORRELATION = 0.1


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean over clustered items, its CR2 variance and degrees of freedom, and the sums they are computed from."""

    per_item: Floats  # (items,), mean over seeds
    sums: Floats  # (clusters,)
    sizes: Floats  # (clusters,)
    residual: Floats  # (clusters,), sums − sizes · mean
    mean: float
    independent_variance: float  # of the mean, if items were independent
    variance: float  # of the mean, cluster-robust
    df: float  # degrees of freedom of that variance

    @property
    def clustered(self) -> bool:
        """Whether any cluster has two items or more."""
        return bool(self.sizes.max() > 1)

    @property
    def design_effect(self) -> float:
        """The variance divided by that of independent items; 1 if the items do not vary."""
        return self.variance / self.independent_variance if self.independent_variance > 0 else 1.0

    @property
    def between_share(self) -> float:
        """Share of the variance of a cluster's sum that lies between clusters, derived from cluster size alone.

        Computed for the cluster that an average item is in, at a correlation of 0.1 within clusters. The correlation
        is assumed, not estimated: if only a few clusters lose much, a sample can easily contain none of them.
        """
        size = float((self.sizes**2).sum() / self.sizes.sum())
        return size * _CORRELATION / (1 + (size - 1) * _CORRELATION)


def clustered_mean(values: Floats, cluster: Codes, scale: float) -> ClusteredMean:
    """The mean of values (seeds, items) and its variance; `scale` is the largest absolute value a score may have."""
    per_item = values.mean(axis=0)
    items = per_item.size
    sizes = np.bincount(cluster).astype(np.float64)
    sums = cluster_sums(values, cluster).mean(axis=0)
    # Equal values differ by rounding errors, and ratios of such differences would mean nothing.
    rounding = 1e-12 * items * (scale if math.isfinite(scale) else float(np.abs(per_item).max()))
    mean = float(_unless_tiny(per_item.sum(), rounding)) / items
    residual = _unless_tiny(sums - sizes * mean, rounding)
    item_residual = _unless_tiny(per_item - mean, rounding)
    independent_variance = float((item_residual**2).sum()) / (items - 1) / items
    variance, df = _cluster_variance(residual, sizes, independent_variance)
    return ClusteredMean(
        per_item=per_item,
        sums=sums,
        sizes=sizes,
        residual=residual,
        mean=mean,
        independent_variance=independent_variance,
        variance=variance,
        df=df,
    )


def _unless_tiny(values: Floats, limit: float) -> Floats:
    """Values, with 0 in place of those that are no larger than the limit."""
    return np.where(np.abs(values) <= limit, 0.0, values)


def cluster_sums(values: Floats, cluster: Codes) -> Floats:
    """Sums over the items of each cluster: (rows, items) → (rows, clusters)."""
    return np.stack([np.bincount(cluster, row) for row in values])


def _cluster_variance(residual: Floats, sizes: Floats, independent_variance: float) -> tuple[float, float]:
    """CR2 variance of a mean and its degrees of freedom (Bell & McCaffrey 2002); residuals and sizes are (clusters,).

    Working model: items within a cluster are equally correlated, as strongly as the data say. With independent items
    and clusters of equal size this is exactly the t test on cluster means.
    """
    items = sizes.sum()
    share = sizes / items
    slack = 1 / (1 - share)
    raw = float((residual**2 * slack).sum()) / items**2
    excess = float((sizes**2).sum()) / items - 1
    correlation = (
        min(1.0, max(0.0, raw / independent_variance - 1) / excess) if independent_variance > 0 and excess > 0 else 0.0
    )
    # Variance of a cluster's sum under the model, then of the scaled residuals: M_gg and Σ M_gk² in closed form.
    model = sizes * (1 + correlation * (sizes - 1))
    total = model.sum()
    off = share**2 * total - 2 * share * model
    diagonal = (model + off) * slack
    aa, bb, ab = (float((x * slack).sum()) for x in (model**2, share**2, model * share))
    every = 2 * aa * bb + total**2 * bb**2 + 2 * ab**2 - 4 * total * ab * bb
    frobenius = every - float(((off * slack) ** 2).sum()) + float((diagonal**2).sum())
    trace = float(diagonal.sum())
    return raw * float(total) / trace, trace**2 / frobenius


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """What the choice of calibration seeds adds to the variance of the mean; zeros with a single seed."""

    observed: float  # variance of the mean over seeds, from the spread of the means of each seed
    item_noise: float  # the part of it that item noise explains, which the variance over items already counts

    def variance(self, share: float) -> float:
        """The observed variance less this share of the item noise, at least 0."""
        return max(0.0, self.observed - share * self.item_noise)


def seed_variance_of(values: Floats, cluster: Codes) -> SeedVariance:
    """Variance over the seeds of values (seeds, items); every seed has a value for every item."""
    seeds, items = values.shape
    if seeds == 1:
        return SeedVariance(observed=0.0, item_noise=0.0)
    seed_means = values.mean(axis=1)
    sums = cluster_sums(values - seed_means[:, None], cluster)
    interaction = sums - sums.mean(axis=0)
    clusters: int = sums.shape[1]
    noise = float((interaction**2).sum()) / items**2 / (seeds * (seeds - 1)) * clusters / (clusters - 1)
    return SeedVariance(observed=float(seed_means.var(ddof=1)) / seeds, item_noise=noise)


def skewness(residual: Floats) -> float:
    """Skewness of the studentised sum of these residuals."""
    largest = float(np.abs(residual).max())
    if largest == 0:
        return 0.0
    unit = residual / largest  # cubes of the smallest floats would underflow
    return float((unit**3).sum() / (unit**2).sum() ** 1.5)
