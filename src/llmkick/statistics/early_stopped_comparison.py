"""Comparison of two models whose evaluation stopped as soon as the verdict was known.

The stopping rule itself is in `early_stopping`, which decides during a run and needs no comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmkick.statistics.betting import Stopping, confidence_sequence
from llmkick.statistics.early_stopping import (
    BETS_SHARE,
    EarlyStop,
    Scores,
    cluster_codes,
    could_have_signal,
    filled,
    signal_after,
)
from llmkick.statistics.item_order import ItemOrder
from llmkick.statistics.paired import Comparison, compare
from llmkick.statistics.undecided import Undecided, explain_undecided
from llmkick.statistics.variance import Floats, Range
from llmkick.statistics.verdict import PairedScores, Verdict, loss_bounds

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
    family_size: int = 1,
) -> Comparison:
    """Compare two models on the items asked until the verdict was known; `stopping` says where that was.

    Verdict, p values and bounds are valid although the data determined when to stop; McNemar's test (None) is not.
    family_size: as in `EarlyStop`; verdict and bounds are at alpha whatever it is.
    Raises DataError if scores are missing that the stopping rule still needs.
    """
    signal = signal_after(order, dense, chance=chance, alpha=alpha, score_range=score_range) or False
    settings = {"margin": margin, "alpha": alpha, "chance": chance}
    rule = EarlyStop(order, **settings, signal=signal, score_range=score_range, family_size=family_size)
    asked, state = _fed(rule, dense, compressed)
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
        could = could_have_signal(order, dense, chance=chance, alpha=alpha, score_range=score_range)
        return _without_signal(fixed, state, dense, could=could)
    answers = _Asked(order, asked, dense, compressed, margin, alpha, chance, score_range)
    interval = (0.0, 0.0) if same_model else answers.bounds()
    is_open = state.outcome == "undecided" and not same_model and fixed.clusters > 1
    undecided, reasons = answers.explained() if is_open else (None, list[str]())
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


def _fed(rule: EarlyStop, dense: Scores, compressed: Scores) -> tuple[list[str], Stopping]:
    """The items that a rule asks, and its state after the last of them."""
    asked: list[str] = []
    while rule.batch is not None:
        asked += rule.batch
        rule.feed(dense, compressed)
    return asked, rule.state


def _without_signal(fixed: Comparison, state: Stopping, dense: Scores, *, could: bool) -> Comparison:
    """The comparison that ended because the dense model shows no signal; `could`: its unscored items might."""
    if could:
        verdict: Verdict = "incomplete"
        unscored = sum(score is None for score in dense.values())
        note = (
            f"{unscored} of {len(dense)} items of the dense model are unscored: whether it is above chance "
            f"({fixed.chance:g}) depends on them; one batch was asked"
        )
    else:
        verdict = "no signal"
        missing = f"the dense score is not shown to be above chance ({fixed.chance:g})"
        note = f"{missing}: nothing to forget, one batch was asked"
    stopping = replace(state, outcome=verdict)
    return replace(fixed, verdict=verdict, p_matching=None, p_not_matching=None, notes=(note,), stopping=stopping)


@dataclass(frozen=True)
class _Asked:
    """The scores of the items asked, and the settings of the tests."""

    order: ItemOrder
    items: Sequence[str]
    dense: Scores
    compressed: Scores
    margin: float
    alpha: float
    chance: float
    score_range: Range

    def bounds(self) -> Range | None:
        """The bounds by betting; if all items were asked, the narrower of these and those of the fixed-sample test.

        Each may miss the truth in its share of alpha, as in the verdict. Unscored items are at their best for the
        lower bound and at their worst for the upper one.
        """
        (low, high), order = self.score_range, self.order
        labels = [order.clusters[item] for item in self.items]
        ends: list[float] = []
        for side, (if_dense, if_compressed) in enumerate(((low, high), (high, low))):
            d, c = filled(self.items, self.dense, if_dense), filled(self.items, self.compressed, if_compressed)
            sequence = confidence_sequence(
                d,
                c,
                alpha=BETS_SHARE * self.alpha,
                chance=self.chance,
                clusters=None if order.largest_cluster is None else labels,
                largest_cluster=order.largest_cluster,
                score_range=self.score_range,
            )
            bounds = [] if sequence is None else [sequence[side]]
            if len(self.items) == len(order.clusters):
                paired = _paired(order, d, c, self.items, self.score_range)
                share = (1 - BETS_SHARE) * self.alpha
                fixed = loss_bounds(paired, margin=self.margin, alpha=share, chance=self.chance)
                bounds += [] if fixed is None else [fixed[side]]
            if bounds:
                ends.append(min(bounds) if side else max(bounds))
        return (ends[0], ends[1]) if len(ends) == 2 and ends[0] <= ends[1] else None

    def explained(self) -> tuple[Undecided, list[str]]:
        """Why the fixed-sample test of the scored items decides nothing at its share of alpha, also as a note."""
        scored = [item for item in self.items if self.dense[item] is not None and self.compressed[item] is not None]
        dense, compressed = filled(scored, self.dense, 0.0), filled(scored, self.compressed, 0.0)
        scores = _paired(self.order, dense, compressed, scored, self.score_range)
        share = (1 - BETS_SHARE) * self.alpha
        undecided = explain_undecided(scores, margin=self.margin, alpha=share, chance=self.chance)
        return undecided, [undecided.sentence(scores)]


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
        results = {"undecided": "they do not decide", "incomplete": "the unscored ones could change the verdict"}
        result = results.get(state.outcome, "together they decide")
        notes.append(f"looked at after every batch: all {state.of} items were asked, {result}")
    if state.unscored:
        notes.append(f"{state.unscored} of {state.items} items are unscored: counted at their worst and at their best")
    return notes
