"""Comparison of two models whose evaluation stopped as soon as the verdict was known.

The stopping rule itself is in `early_stopping`, which decides during a run and needs no comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmkick.statistics.betting import Stopping, confidence_sequence
from llmkick.statistics.early_stopping import BETS_SHARE, EarlyStop, Scores, cluster_codes, filled, signal_after
from llmkick.statistics.item_order import ItemOrder
from llmkick.statistics.paired import Comparison, compare
from llmkick.statistics.variance import Range
from llmkick.statistics.verdict import PairedScores, loss_interval

INTERVAL_METHOD = "confidence sequence by betting; on all items also Fieller, cluster-robust"


def compare_stopped(
    order: ItemOrder,
    dense: Scores,
    compressed: Scores,
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    chance: float = 0.0,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int] | None = None,
    same_model: bool | None = None,
    score_range: Range = (0.0, 1.0),
) -> Comparison:
    """Compare two models on the items asked until the verdict was known; `stopping` says where that was.

    The verdict, its p values and the interval (a confidence sequence) are valid although the data determined when to
    stop. McNemar's test and the bootstrap would not be and are None.
    Raises DataError if scores are missing that the stopping rule still needs.
    """
    signal = signal_after(order, dense, chance=chance, alpha=alpha, score_range=score_range)
    rule = EarlyStop(order, margin=margin, alpha=alpha, signal=bool(signal), score_range=score_range)
    asked: list[str] = []
    while rule.batch is not None:
        asked += rule.batch
        rule.feed(dense, compressed)
    state = rule.state
    fixed = compare(
        {item: dense[item] for item in asked},
        {item: compressed[item] for item in asked},
        margin=margin,
        clusters={item: order.clusters[item] for item in asked},
        chance=chance,
        alpha=alpha,
        task=task,
        recipe=recipe,
        seeds=seeds,
        score_range=score_range,
        resamples=0,
        same_model=same_model,
    )
    if state.outcome == "no signal":
        note = f"the dense score is not shown to be above chance ({chance:g}): nothing to forget, one batch was asked"
        return replace(fixed, verdict="no signal", p_matching=None, p_not_matching=None, notes=(note,), stopping=state)
    interval = _interval(order, asked, dense, compressed, alpha=alpha, score_range=score_range)
    return replace(
        fixed,
        verdict="matching" if same_model else state.outcome,
        interval=interval,
        interval_method="none" if interval is None else INTERVAL_METHOD,
        bootstrap_interval=None,
        mcnemar_p=None,
        p_matching=state.p_matching,
        p_not_matching=state.p_not_matching,
        notes=(*_kept_notes(fixed), *_stopping_notes(state)),
        stopping=state,
    )


def _interval(
    order: ItemOrder, asked: Sequence[str], dense: Scores, compressed: Scores, *, alpha: float, score_range: Range
) -> Range | None:
    """The confidence sequence; if all items were asked, its intersection with the fixed-sample interval.

    Each may miss the truth in its share of alpha. Unscored items are at their best for the lower end and at their worst
    for the upper end.
    """
    low, high = score_range
    labels = [order.clusters[item] for item in asked]
    whole, codes = order.largest_cluster is not None, cluster_codes(labels)
    ends: list[float] = []
    for side, (if_dense, if_compressed) in enumerate(((low, high), (high, low))):
        d, c = filled(asked, dense, if_dense), filled(asked, compressed, if_compressed)
        sequence = confidence_sequence(
            d,
            c,
            alpha=BETS_SHARE * alpha,
            clusters=labels if whole else None,
            largest_cluster=order.largest_cluster,
            score_range=score_range,
        )
        bounds = [] if sequence is None else [sequence[side]]
        if len(asked) == len(order.clusters) and d.mean() > low:
            paired = PairedScores(dense=d, compressed=c[None], cluster=codes, low=low, high=high)
            interval = loss_interval(paired, alpha=(1 - BETS_SHARE) * alpha)
            bounds += [] if interval is None else [interval[side]]
        if bounds:
            ends.append(min(bounds) if side else max(bounds))
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] <= ends[1] else None


def _kept_notes(fixed: Comparison) -> list[str]:
    """The notes of a comparison that hold for early stopping too."""
    return [note for note in fixed.notes if "unscored" not in note and "identical" not in note]


def _stopping_notes(state: Stopping) -> list[str]:
    notes = []
    if state.stopped:
        notes.append(f"decided after {state.items} of {state.of} items: the loss observed is somewhat exaggerated")
    else:
        result = "they do not decide" if state.outcome == "undecided" else "together they decide"
        notes.append(f"looked at after every batch: all {state.of} items were asked, {result}")
    if state.unscored:
        notes.append(f"{state.unscored} of {state.items} items are unscored: counted at their worst and at their best")
    return notes
