"""Perplexity or bits per byte of two models on the same text: a control beside the tasks, without a verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.bootstrap import bootstrap_ratio
from llmkick.statistics.mean import mean_test
from llmkick.statistics.pairing import (
    Clusters,
    Pairs,
    Scores,
    SeedScores,
    check_settings,
    column_of,
    in_order_of,
    pair_scores,
    sampling_notes,
)
from llmkick.statistics.variance import Floats, Range, cluster_sums
from llmkick.statistics.verdict import PairedScores


@dataclass(frozen=True, kw_only=True)
class PerplexityComparison:
    """The increase of perplexity or bits per byte. It has no verdict, so it cannot enter an overall verdict."""

    task: str
    recipe: str
    seeds: tuple[int | str, ...]
    n: int  # windows or segments of text
    dense: float  # perplexity or bits per byte
    compressed: float  # the same, at the mean loss over seeds
    relative_increase: float  # compressed / dense − 1
    interval: Range | None  # two-sided, level 1 − alpha
    interval_method: str
    bootstrap_interval: Range | None
    outcome: Literal["within margin", "beyond margin", "undecided"]
    p_within: float | None  # one-sided, H0: the increase is the margin or more
    p_beyond: float | None
    margin: float
    alpha: float
    notes: tuple[str, ...]
    kind: Literal["perplexity"] = "perplexity"


def compare_perplexity(
    dense_nll: Scores,
    compressed_nll: SeedScores,
    tokens: Scores | None = None,
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
    """Relative increase of perplexity over paired windows of text.

    The losses are mean negative log-likelihoods per token (nats) of each window. They are weighted by `tokens`, the
    number of tokens predicted in each window (default: equal weights). ppl_c / ppl_d is the exponential of the weighted
    mean difference, so its interval is the exponential of the interval of a mean.
    Raises DataError unless both models have a loss for every window.
    """
    check_settings(margin, alpha, resamples)
    pairs = pair_scores(dense_nll, compressed_nll, clusters, seeds)
    windows, weight = complete_windows(pairs, tokens, "perplexity", "window")
    difference = windows.compressed - windows.dense
    dense, log_ratio = float((weight * windows.dense).mean()), float((weight * difference).mean())
    increase = Increase(
        dense=math.exp(dense),
        compressed=math.exp(dense + log_ratio),
        estimate=log_ratio,
        room=weight * (math.log1p(margin) - difference),
        deviation=weight * (difference - log_ratio),
        numerator=weight * difference,
        denominator=weight,
        relative=math.expm1,
        method="Student t on log perplexity, cluster-robust",
        unit="window",
    )
    return compare_increase(
        increase, pairs, windows, margin=margin, alpha=alpha, task=task, recipe=recipe, resamples=resamples, seed=seed
    )


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
    """Relative increase of bits per byte over paired segments of text: the control if the models' tokens differ.

    The losses are bits per byte of each segment, weighted by the bytes scored in it (the same for both models).
    The increase is a ratio of two weighted means, so its interval is that of compressed − ratio × dense, over the
    dense mean (linearised). Raises DataError unless both models have a loss for every segment.
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


@dataclass(frozen=True, kw_only=True)
class Increase:
    """The increase of a control metric: its estimate, and the values per window for its tests and intervals."""

    dense: float
    compressed: float
    estimate: float
    room: Floats  # (seeds, windows), with a mean above 0 if the increase is below the margin
    deviation: Floats  # (seeds, windows), of mean 0 and with the error of the estimate
    numerator: Floats  # (seeds, windows); the estimate is Σ numerator / Σ denominator
    denominator: Floats  # (windows,)
    relative: Callable[[float], float]  # an estimate → the relative increase
    method: str
    unit: str


def complete_windows(pairs: Pairs, sizes: Scores | None, what: str, unit: str) -> tuple[PairedScores, Floats]:
    """All windows and their weights. Raises DataError unless both models have a loss for every window."""
    windows = pairs.complete(-np.inf, np.inf)
    if not windows.dense.size or windows.dense.size < pairs.dense.size:
        raise DataError(f"{what} needs at least one {unit} and a loss for every {unit} in both models")
    return windows, window_weights(sizes, pairs)


def compare_increase(
    increase: Increase,
    pairs: Pairs,
    windows: PairedScores,
    *,
    margin: float,
    alpha: float,
    task: str,
    recipe: str,
    resamples: int,
    seed: int,
) -> PerplexityComparison:
    """Tests against the margin and intervals for an increase over paired windows."""
    test, interval = None, None
    if windows.clusters > 1:
        unbounded = (-np.inf, np.inf)
        test = mean_test(increase.room, windows.cluster, unbounded)
        error = mean_test(increase.deviation, windows.cluster, unbounded)
        below, above = error.critical(alpha / 2), error.critical(alpha / 2, error.df_above)
        interval = (increase.relative(increase.estimate - below), increase.relative(increase.estimate + above))
    resampled = bootstrap_ratio(
        cluster_sums(increase.numerator, windows.cluster),
        cluster_sums(increase.denominator[None], windows.cluster)[0],
        alpha=alpha,
        resamples=resamples,
        seed=seed,
    )
    p_within, p_beyond = (test.p_above, test.p_below) if test else (None, None)
    return PerplexityComparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=windows.dense.size,
        dense=increase.dense,
        compressed=increase.compressed,
        relative_increase=increase.relative(increase.estimate),
        interval=interval,
        interval_method="none" if interval is None else increase.method,
        bootstrap_interval=resampled and (increase.relative(resampled[0]), increase.relative(resampled[1])),
        outcome=perplexity_outcome(p_within, p_beyond, alpha),
        p_within=p_within,
        p_beyond=p_beyond,
        margin=margin,
        alpha=alpha,
        notes=sampling_notes(pairs, windows, increase.unit),
    )


def perplexity_outcome(
    p_within: float | None, p_beyond: float | None, alpha: float
) -> Literal["within margin", "beyond margin", "undecided"]:
    """The outcome of the two one-sided tests against the margin."""
    if p_within is not None and p_within < alpha:
        return "within margin"
    return "beyond margin" if p_beyond is not None and p_beyond < alpha else "undecided"


def window_weights(tokens: Scores | None, pairs: Pairs) -> Floats:
    """Tokens of each window divided by their mean: (windows,)."""
    if tokens is None:
        return np.ones(pairs.dense.size)
    ids, counts = column_of(tokens, "tokens")
    counts = in_order_of(ids, counts, pairs.ids, pairs.dense.size, "tokens")
    if not (counts > 0).all():
        raise DataError(f"every window needs a positive number of tokens; one has {counts.min()}")
    weights: Floats = counts / counts.mean()
    return weights
