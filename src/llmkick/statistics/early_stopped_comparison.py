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
from llmkick.statistics.undecided import explain_undecided
from llmkick.statistics.variance import Floats, Range
from llmkick.statistics.verdict import PairedScores, loss_bounds

INTERVAL_METHOD = "pair of one-sided bounds by betting; on all items also by the test of the verdict"


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

    The verdict, its p values and the bounds are valid although the data determined when to stop. McNemar's test would
    not be and is None.
    Raises DataError if scores are missing that the stopping rule still needs.
    """
    signal = signal_after(order, dense, chance=chance, alpha=alpha, score_range=score_range)
    rule = EarlyStop(order, margin=margin, alpha=alpha, chance=chance, signal=bool(signal), score_range=score_range)
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
        strata=None if order.strata is None else {item: order.strata[item] for item in asked},
        chance=chance,
        alpha=alpha,
        task=task,
        recipe=recipe,
        seeds=seeds,
        score_range=score_range,
        same_model=same_model,
        explain=False,
    )
    if state.outcome == "no signal":
        note = f"the dense score is not shown to be above chance ({chance:g}): nothing to forget, one batch was asked"
        return replace(fixed, verdict="no signal", p_matching=None, p_not_matching=None, notes=(note,), stopping=state)
    interval: Range | None = (0.0, 0.0)
    if not same_model:
        interval = _bounds(
            order, asked, dense, compressed, margin=margin, alpha=alpha, chance=chance, score_range=score_range
        )
    undecided, reasons = None, list[str]()
    if state.outcome == "undecided" and not same_model and fixed.clusters > 1:
        scored = [item for item in asked if dense[item] is not None and compressed[item] is not None]
        scores = _paired(order, filled(scored, dense, 0.0), filled(scored, compressed, 0.0), scored, score_range)
        undecided = explain_undecided(scores, margin=margin, alpha=(1 - BETS_SHARE) * alpha, chance=chance)
        reasons = [undecided.sentence(scores)]
    return replace(
        fixed,
        verdict="matching" if same_model else state.outcome,
        undecided=undecided,
        interval=interval,
        interval_method="none" if interval is None else INTERVAL_METHOD,
        mcnemar_p=None,
        p_matching=state.p_matching,
        p_not_matching=state.p_not_matching,
        notes=(*_kept_notes(fixed), *reasons, *_stopping_notes(state)),
        stopping=state,
    )


def _bounds(
    order: ItemOrder,
    asked: Sequence[str],
    dense: Scores,
    compressed: Scores,
    *,
    margin: float,
    alpha: float,
    chance: float,
    score_range: Range,
) -> Range | None:
    """The bounds by betting; if all items were asked, the narrower of these and those of the fixed-sample test.

    Each may miss the truth in its share of alpha, as in the verdict. Unscored items are at their best for the lower
    bound and at their worst for the upper one.
    """
    low, high = score_range
    labels = [order.clusters[item] for item in asked]
    whole = order.largest_cluster is not None
    ends: list[float] = []
    for side, (if_dense, if_compressed) in enumerate(((low, high), (high, low))):
        d, c = filled(asked, dense, if_dense), filled(asked, compressed, if_compressed)
        sequence = confidence_sequence(
            d,
            c,
            alpha=BETS_SHARE * alpha,
            chance=chance,
            clusters=labels if whole else None,
            largest_cluster=order.largest_cluster,
            score_range=score_range,
        )
        bounds = [] if sequence is None else [sequence[side]]
        if len(asked) == len(order.clusters):
            paired = _paired(order, d, c, asked, score_range)
            fixed = loss_bounds(paired, margin=margin, alpha=(1 - BETS_SHARE) * alpha, chance=chance)
            bounds += [] if fixed is None else [fixed[side]]
        if bounds:
            ends.append(min(bounds) if side else max(bounds))
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] <= ends[1] else None


def _paired(
    order: ItemOrder, dense: Floats, compressed: Floats, items: Sequence[str], score_range: Range
) -> PairedScores:
    """Scores of items in their clusters."""
    codes = cluster_codes([order.clusters[item] for item in items])
    return PairedScores(
        dense=dense, compressed=compressed[None], cluster=codes, low=score_range[0], high=score_range[1]
    )


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
