"""Bits per byte of two models on the same text: the control for models whose tokens differ."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.errors import DataError
from llmkick.statistics.pairing import Clusters, Scores, SeedScores, check_settings, pair_scores
from llmkick.statistics.perplexity import Increase, PerplexityComparison, compare_increase, complete_windows


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
    segments, weight = complete_windows(pairs, bytes_scored, "bits per byte", "segment")
    dense, compressed = float((weight * segments.dense).mean()), float((weight * segments.compressed).mean())
    if dense <= 0:
        raise DataError(f"bits per byte of the dense model must be positive; they are {dense:g}")
    ratio = compressed / dense
    increase = Increase(
        dense=dense,
        compressed=compressed,
        estimate=ratio,
        room=weight * ((1 + margin) * segments.dense - segments.compressed),
        deviation=weight * (segments.compressed - ratio * segments.dense) / dense,
        numerator=weight * segments.compressed,
        denominator=weight * segments.dense,
        relative=lambda ratio: ratio - 1,
        method="Student t on the linearised ratio, cluster-robust",
        unit="segment",
    )
    return compare_increase(
        increase, pairs, segments, margin=margin, alpha=alpha, task=task, recipe=recipe, resamples=resamples, seed=seed
    )
