"""Perplexity or bits per byte of two models on the same text: a control beside the tasks, without a verdict."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.mean import MeanTest, mean_test
from llmkick.statistics.pairing import (
    Groups,
    Pairs,
    Scores,
    SeedScores,
    check_settings,
    column_of,
    in_order_of,
    pair_scores,
    sampling_notes,
)
from llmkick.statistics.variance import Floats, Range
from llmkick.statistics.verdict import PairedScores, where_rejected

# An upper bound beyond this many times the observed ratio is none.
LARGEST_RATIO = 1e6


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
    interval: Range | None  # one-sided bounds, each at level 1 − alpha
    interval_method: str
    outcome: Literal["within margin", "beyond margin", "undecided"]
    p_within: float | None  # one-sided, H0: the increase is the margin or more
    p_beyond: float | None
    margin: float
    alpha: float
    notes: tuple[str, ...]
    seed_share: float | None = None  # the part of its variance that is between seeds; None for a single seed
    kind: Literal["perplexity"] = "perplexity"


def compare_perplexity(
    dense_nll: Scores,
    compressed_nll: SeedScores,
    tokens: Scores | None = None,
    *,
    margin: float = 0.05,
    clusters: Groups | None = None,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
) -> PerplexityComparison:
    """Relative increase of perplexity over paired windows of text.

    The losses are mean negative log-likelihoods per token (nats) of each window. They are weighted by `tokens`, the
    number of tokens predicted in each window (default: equal weights). ppl_c / ppl_d is the exponential of the weighted
    mean difference; the bounds are the increases that the test at the margin would leave open.
    Raises DataError unless both models have a loss for every window.
    """
    check_settings(margin, alpha)
    pairs = pair_scores(dense_nll, compressed_nll, seeds, clusters=clusters)
    windows, weight = complete_windows(pairs, tokens, "perplexity", "window")
    difference = windows.compressed - windows.dense
    dense, log_ratio = float((weight * windows.dense).mean()), float((weight * difference).mean())
    increase = Increase(
        dense=math.exp(dense),
        compressed=math.exp(dense + log_ratio),
        relative=math.expm1(log_ratio),
        room=lambda increase: weight * (math.log1p(increase) - difference),
        method="one-sided bounds: cluster-robust t on log perplexity",
        unit="window",
    )
    return compare_increase(increase, pairs, windows, margin=margin, alpha=alpha, task=task, recipe=recipe)


def compare_bits_per_byte(
    dense_bits: Scores,
    compressed_bits: SeedScores,
    bytes_scored: Scores | None = None,
    *,
    margin: float = 0.05,
    clusters: Groups | None = None,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
) -> PerplexityComparison:
    """Relative increase of bits per byte over paired segments of text: the control if the models' tokens differ.

    The losses are bits per byte of each segment, weighted by the bytes scored in it (the same for both models).
    The increase is a ratio of two weighted means, tested by the mean of (1 + r) · dense − compressed.
    Raises DataError unless both models have a loss for every segment.
    """
    check_settings(margin, alpha)
    pairs = pair_scores(dense_bits, compressed_bits, seeds, clusters=clusters)
    segments, weight = complete_windows(pairs, bytes_scored, "bits per byte", "segment")
    dense, compressed = float((weight * segments.dense).mean()), float((weight * segments.compressed).mean())
    if dense <= 0:
        raise DataError(f"bits per byte of the dense model must be positive; they are {dense:g}")
    ratio = compressed / dense
    increase = Increase(
        dense=dense,
        compressed=compressed,
        relative=ratio - 1,
        room=lambda increase: weight * ((1 + increase) * segments.dense - segments.compressed),
        method="one-sided bounds: cluster-robust t on a ratio of means",
        unit="segment",
    )
    return compare_increase(increase, pairs, segments, margin=margin, alpha=alpha, task=task, recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class Increase:
    """The increase of a control metric: its estimate, and the values per window for its test and bounds."""

    dense: float
    compressed: float
    relative: float
    room: Callable[[float], Floats]  # r → (seeds, windows), with a mean above 0 if the increase is below r
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
) -> PerplexityComparison:
    """Tests against the margin and the pair of one-sided bounds of an increase over paired windows."""
    test, interval = None, None
    if windows.clusters > 1:

        def test_of(relative: float) -> MeanTest:
            return mean_test(increase.room(relative), windows.cluster)

        test = test_of(margin)
        ends = (
            where_rejected(p, increase.relative, alpha, limit=limit, margin=margin)
            for p, limit in (
                (lambda r: test_of(r).p_below, -1.0),
                (lambda r: test_of(r).p_above, LARGEST_RATIO * (2 + abs(increase.relative))),
            )
        )
        lower, upper = next(ends), next(ends)
        # No metric falls by more than all of it.
        interval = None if upper is None else (-1.0 if lower is None else lower, upper)
    p_within, p_beyond = (test.p_above, test.p_below) if test else (None, None)
    return PerplexityComparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=windows.dense.size,
        dense=increase.dense,
        compressed=increase.compressed,
        relative_increase=increase.relative,
        interval=interval,
        interval_method="none" if interval is None else increase.method,
        outcome=perplexity_outcome(p_within, p_beyond, alpha),
        p_within=p_within,
        p_beyond=p_beyond,
        margin=margin,
        alpha=alpha,
        notes=sampling_notes(pairs, windows, increase.unit),
        seed_share=test.seed_share if test and len(pairs.seeds) > 1 else None,
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
