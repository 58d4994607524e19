"""Bootstrap intervals of a ratio of means, with clusters resampled whole: a check of Fieller's interval."""

import numpy as np
from scipy import stats

from llmkick.statistics.variance import Floats, Range, cluster_sums
from llmkick.statistics.verdict import PairedScores


def bootstrap_interval(scores: PairedScores, *, alpha: float, resamples: int, seed: int) -> Range | None:
    """Paired bootstrap interval of the relative loss: draws calibration seeds first, then whole clusters."""
    dense = cluster_sums(scores.dense[None], scores.cluster)[0]
    kept = bootstrap_ratio(
        cluster_sums(scores.compressed, scores.cluster), dense, alpha=alpha, resamples=resamples, seed=seed
    )
    return kept and (1 - kept[1], 1 - kept[0])


def bootstrap_ratio(numerator: Floats, denominator: Floats, *, alpha: float, resamples: int, seed: int) -> Range | None:
    """Two-sided interval of mean-over-seeds Σ numerator / Σ denominator: (seeds, clusters), (clusters,).

    BCa (Efron 1987) with one seed, percentiles of the two-stage bootstrap with several. None with fewer than
    two clusters, without resamples, or if a resample has a denominator of 0.
    """
    seeds, clusters = numerator.shape
    if clusters < 2 or resamples == 0:
        return None
    rng = np.random.default_rng(seed)
    sums = np.vstack([denominator, numerator])
    # Clusters with equal sums are drawn as one kind: 14,042 items, right or wrong in each model, are four kinds.
    kinds, count = np.unique(sums, axis=1, return_counts=True)
    few = 8 * count.size < clusters
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    ratios = np.empty(resamples)
    chunk = max(1, 4_000_000 // (count.size if few else clusters))
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        if few:
            drawn = rng.multinomial(clusters, count / clusters, size=stop - start) @ kinds.T
        else:
            picked = rng.integers(clusters, size=(stop - start, clusters), dtype=np.int32)
            drawn = np.stack([row[picked].sum(axis=1) for row in sums], axis=1)
        if (drawn[:, 0] <= 0).any():
            return None
        ratios[start:stop] = (drawn[:, 1:] * seed_share[start:stop]).sum(axis=1) / drawn[:, 0]
    if seeds > 1:
        low, high = np.quantile(ratios, [alpha / 2, 1 - alpha / 2])
        return float(low), float(high)
    return _bca(ratios, numerator[0], denominator, alpha)


def _bca(ratios: Floats, numerator: Floats, denominator: Floats, alpha: float) -> Range:
    """Bias-corrected and accelerated percentiles of ratios; the jackknife leaves out one cluster."""
    estimate = numerator.sum() / denominator.sum()
    below = ((ratios < estimate).mean() + (ratios <= estimate).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / ratios.size, 1 - 0.5 / ratios.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    deviation = left_out.mean() - left_out
    scale = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * scale) if scale > 0 and np.isfinite(scale) else 0.0
    z = bias + stats.norm.ppf([alpha / 2, 1 - alpha / 2])
    low, high = np.quantile(ratios, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)
