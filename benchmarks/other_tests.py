"""Other tests of the same claim, to compare with: cluster t, BCa bootstrap of clusters, Tango's score test."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from llmkick.statistics.mean import UnobservedMoments, null_variance
from llmkick.statistics.variance import cluster_sums
from llmkick.statistics.verdict import PairedScores

Floats = NDArray[np.float64]
# Whether "the loss is below r" and "the loss is above r" are shown at alpha.
Shown = tuple[bool, bool]


def cluster_t(scores: PairedScores, loss: float, alpha: float) -> Shown:
    """Student's t on the residual sums of clusters, with as many degrees of freedom as clusters less one."""
    values = scores.shortfall(loss).mean(axis=0)
    sizes = np.bincount(scores.cluster)
    mean = values.mean()
    residual = np.bincount(scores.cluster, values) - sizes * mean
    clusters = sizes.size
    error = math.sqrt(clusters / (clusters - 1) * float((residual**2).sum())) / values.size
    t = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
    return bool(special.stdtr(clusters - 1, -t) < alpha), bool(special.stdtr(clusters - 1, t) < alpha)


def tango(scores: PairedScores, loss: float, alpha: float) -> Shown:
    """The matched-pair score test of independent right-or-wrong items (Tango 1998); it knows no clusters."""
    values = scores.shortfall(loss).mean(axis=0)
    low, high = (UnobservedMoments(end, end**2) for end in scores.shortfall_range(loss))
    variance = null_variance(values, low, high) / values.size
    z = float(values.mean()) / math.sqrt(variance) if variance > 0 else 0.0
    return bool(special.ndtr(-z) < alpha), bool(special.ndtr(z) < alpha)


def bca(scores: PairedScores, loss: float, alpha: float, *, resamples: int, seed: int) -> Shown:
    """One-sided bounds of the bias-corrected and accelerated bootstrap of whole clusters (Efron 1987)."""
    dense = cluster_sums(scores.dense[None], scores.cluster)[0]
    compressed = cluster_sums(scores.compressed, scores.cluster).mean(axis=0)
    if dense.sum() <= 0:
        return False, False
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(dense.size, np.full(dense.size, 1 / dense.size), size=resamples)
    below = weights @ dense
    if (below <= 0).any():
        return False, False
    losses = 1 - (weights @ compressed) / below
    estimate = 1 - compressed.sum() / dense.sum()
    share = ((losses < estimate).mean() + (losses <= estimate).mean()) / 2
    bias = stats.norm.ppf(np.clip(share, 0.5 / resamples, 1 - 0.5 / resamples))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = 1 - (compressed.sum() - compressed) / (dense.sum() - dense)
    deviation = left_out.mean() - left_out
    scale = float((deviation**2).sum()) ** 1.5
    acceleration = float((deviation**3).sum()) / (6 * scale) if scale > 0 and math.isfinite(scale) else 0.0
    z = bias + stats.norm.ppf([alpha, 1 - alpha])
    lower, upper = np.quantile(losses, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return bool(upper < loss), bool(lower > loss)
