"""Bits per byte of two models on the same text: the control for models whose tokens differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.bootstrap import bootstrap_ratio
from llmkick.statistics.pairing import Clusters, Scores, SeedScores, check_settings, pair_scores, sampling_notes
from llmkick.statistics.perplexity import PerplexityComparison, perplexity_outcome, window_weights
from llmkick.statistics.verdict import cluster_sums, mean_test


def compare_bits_per_byte(
    dense_bits: Scores,
    compressed_bits: SeedScores,
    bytes_scored: Scores | None = None,
    *,
    margin: float = 0.05,
    clusters: Clusters | None = None,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> PerplexityComparison:
    """Relative increase of bits per byte over paired segments of text.

    The losses are bits per byte of each segment, weighted by the bytes scored in it (the same for both models).
    The increase is a ratio of two weighted means, so its interval is that of compressed − ratio × dense, over the
    dense mean (linearised). Raises DataError without a loss for every segment in both models.
    """
    check_settings(margin, alpha, resamples)
    pairs = pair_scores(dense_bits, compressed_bits, clusters, seeds)
    segments = pairs.complete(-np.inf, np.inf)
    if not segments.dense.size or segments.dense.size < pairs.dense.size:
        raise DataError("bits per byte needs at least one segment and a loss for every segment in both models")
    weight = window_weights(bytes_scored, pairs)
    dense, compressed = float((weight * segments.dense).mean()), float((weight * segments.compressed).mean())
    if dense <= 0:
        raise DataError(f"bits per byte of the dense model must be positive; they are {dense:g}")
    ratio = compressed / dense
    test, interval = None, None
    if segments.clusters > 1:
        unbounded = (-np.inf, np.inf)
        gain = weight * ((1 + margin) * segments.dense - segments.compressed)
        test = mean_test(gain, segments.cluster, unbounded)
        around = mean_test(weight * (segments.compressed - ratio * segments.dense) / dense, segments.cluster, unbounded)
        half = around.critical(alpha / 2)
        interval = (ratio - 1 - half, ratio - 1 + half)
    resampled = bootstrap_ratio(
        cluster_sums(weight * segments.compressed, segments.cluster),
        cluster_sums((weight * segments.dense)[None], segments.cluster)[0],
        alpha=alpha,
        resamples=resamples,
        seed=seed,
    )
    p_within, p_beyond = (test.p_above, test.p_below) if test else (None, None)
    return PerplexityComparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=segments.dense.size,
        dense=dense,
        compressed=compressed,
        relative_increase=ratio - 1,
        interval=interval,
        interval_method="none" if interval is None else "Student t on the linearised ratio, cluster-robust",
        bootstrap_interval=resampled and (resampled[0] - 1, resampled[1] - 1),
        outcome=perplexity_outcome(p_within, p_beyond, alpha),
        p_within=p_within,
        p_beyond=p_beyond,
        margin=margin,
        alpha=alpha,
        notes=sampling_notes(pairs, segments, "segment"),
    )
