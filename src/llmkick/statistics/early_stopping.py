"""The stopping rule, which ends an evaluation as soon as the verdict is known.

Both models are asked the same batches in the same random order. First the dense model has to show a signal. Then there
is a bet against each of two hypotheses (see `betting`), and the first that is rejected gives the verdict. If the items
run out before that, the fixed-sample test decides, because it has more power than the bets. The bets may err in
BETS_SHARE of alpha and the fixed-sample test in the rest, so together in alpha.
The rule depends on nothing but the scores, so a run that is interrupted and resumed stops at the same item.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.betting import (
    STAKES,
    Floats,
    SequentialTest,
    Stopping,
    cluster_bets,
    largest_evidence,
    log_wealth,
)
from llmkick.statistics.item_order import ItemOrder
from llmkick.statistics.variance import Codes, Range
from llmkick.statistics.verdict import PairedScores, Verdict, has_signal, loss_test

Scores = Mapping[str, float | None]

# Share of alpha. It leaves the fixed-sample test almost the power that it has without early stopping, and bets at 0.3
# instead of 0.5 of alpha need only a tenth more items: log(0.3 · alpha) against log(0.5 · alpha).
BETS_SHARE = 0.3


class SignalTest:
    """Whether the dense model is above chance: fed batch by batch, each score is read once.

    Bets decide early, and if the items run out without proof, the fixed-sample test of `compare`; together they err in
    alpha. A chance of 0 needs a single success.
    """

    def __init__(
        self, order: ItemOrder, *, chance: float = 0.0, alpha: float = 0.05, score_range: Range = (0.0, 1.0)
    ) -> None:
        self._order, self._chance, self._alpha, self._range = order, chance, alpha, score_range
        self._wealth: Floats = np.zeros(STAKES.size)
        self._scored: list[str] = []
        self._values: list[float] = []
        self._next = 0
        self.outcome: bool | None = None if order.batches else False  # None while it is open

    def feed(self, dense: Scores) -> bool | None:
        """Take the scores of the next batch, which may be among others; return the outcome."""
        batch = self._order.batches[self._next]
        self._next += 1
        scored = [(item, score) for item in batch if (score := dense[item]) is not None]
        self._scored += [item for item, _ in scored]
        self._values += [score for _, score in scored]
        if self.outcome is None:
            self.outcome = self._judge(np.array([score for _, score in scored], dtype=np.float64), scored)
        return self.outcome

    def _judge(self, values: Floats, scored: Sequence[tuple[str, float]]) -> bool | None:
        low, high = self._range
        if self._chance <= low:
            if (values > low).any():
                return True
        elif values.size:
            excess = values - self._chance
            if self._order.largest_cluster is not None:
                labels = [self._order.clusters[item] for item, _ in scored]
                excess = cluster_bets(excess, labels, self._order.largest_cluster)
            path = log_wealth(excess, STAKES / (self._chance - low), self._wealth)
            self._wealth = path[-1]
            if largest_evidence(path) >= -np.log(BETS_SHARE * self._alpha):
                return True
        if self._next < len(self._order.batches):
            return None
        if not self._values:
            return False
        every = np.array(self._values, dtype=np.float64)
        codes = cluster_codes([self._order.clusters[item] for item in self._scored])
        dense_only = PairedScores(dense=every, compressed=every[None], cluster=codes, low=low, high=high)
        return has_signal(dense_only, self._chance, (1 - BETS_SHARE) * self._alpha)


def signal_after(
    order: ItemOrder,
    dense: Scores,
    *,
    chance: float = 0.0,
    alpha: float = 0.05,
    score_range: Range = (0.0, 1.0),
) -> bool | None:
    """Whether the dense model is above chance, from the scores of the first batches; None while that is open."""
    test = SignalTest(order, chance=chance, alpha=alpha, score_range=score_range)
    for batch in order.batches:
        if test.outcome is not None or not all(item in dense for item in batch):
            break
        test.feed(dense)
    return test.outcome


def could_have_signal(
    order: ItemOrder,
    dense: Scores,
    *,
    chance: float = 0.0,
    alpha: float = 0.05,
    score_range: Range = (0.0, 1.0),
) -> bool:
    """Whether a dense model that is not shown to be above chance could be, depending on its unscored items."""
    if all(score is not None for score in dense.values()):
        return False
    at_best = {item: score_range[1] if score is None else score for item, score in dense.items()}
    return bool(signal_after(order, at_best, chance=chance, alpha=alpha, score_range=score_range))


class EarlyStop:
    """The stopping rule: it is fed scores batch by batch and says when to stop.

    An unscored item counts at its worst against "matching" and at its best against "not matching", so the decision
    holds whatever its score would have been. If the items run out undecided, and the scored items alone would decide,
    the outcome is "incomplete". With `family_size` claims of a match that are corrected together, a match ends the bets
    at alpha / family_size, where it passes Holm whatever the others do; outcomes are at alpha.
    """

    def __init__(
        self,
        order: ItemOrder,
        *,
        margin: float = 0.05,
        alpha: float = 0.05,
        chance: float = 0.0,
        signal: bool = True,
        score_range: Range = (0.0, 1.0),
        family_size: int = 1,
    ) -> None:
        self._order, self._signal, self._range = order, signal, score_range
        self._margin, self._alpha, self._chance = margin, alpha, chance
        self._clusters = len(set(order.clusters.values()))
        low, high = score_range
        # The scores that replace those of an unscored item: (dense, compressed); None leaves the item out.
        self._worst = _Side(self._new_test(alpha / family_size), (high, low))
        self._best = _Side(self._new_test(alpha), (low, high))
        self._scored = _Side(self._new_test(alpha), None)
        self._next, self._items, self._unscored = 0, 0, 0
        self.state = self._judge()

    def _new_test(self, alpha: float) -> SequentialTest:
        return SequentialTest(
            margin=self._margin,
            alpha=BETS_SHARE * alpha,
            chance=self._chance,
            score_range=self._range,
            largest_cluster=self._order.largest_cluster,
        )

    @property
    def batch(self) -> tuple[str, ...] | None:
        """The items to ask next; None after the last batch or once decided."""
        over = self.state.stopped or self._next == len(self._order.batches)
        return None if over else self._order.batches[self._next]

    def feed(self, dense: Scores, compressed: Scores) -> Stopping:
        """Take the scores of the next batch, which may be among others. Raises DataError if any is missing."""
        batch = self._order.batches[self._next]
        missing = [item for item in batch if item not in dense or item not in compressed]
        if missing:
            raise DataError(f"item {missing[0]!r} was not asked; {len(missing)} of the batch are missing")
        for side in (self._worst, self._best, self._scored):
            side.feed(self._order, batch, dense, compressed)
        self._next += 1
        self._items += len(batch)
        self._unscored += sum(dense[item] is None or compressed[item] is None for item in batch)
        self.state = self._judge()
        return self.state

    def _judge(self) -> Stopping:
        """The outcome so far; "undecided" also means "continue"."""
        ended = self._next == len(self._order.batches)
        # As in `compare`: a single cluster does not show how clusters differ.
        possible = self._signal and self._clusters > 1

        def p_values(side: _Side) -> tuple[float, float]:
            return side.p_values(
                margin=self._margin, chance=self._chance, possible=possible and ended, score_range=self._range
            )

        p_matching, p_not_matching = p_values(self._worst)[0], p_values(self._best)[1]
        bets: list[tuple[int, Verdict]] = []
        if possible and self._worst.after("matching"):
            bets.append((self._worst.after("matching"), "matching"))
        if possible and self._best.after("not matching"):
            bets.append((self._best.after("not matching"), "not matching"))
        outcome: Verdict = "undecided" if self._signal else "no signal"
        if bets:
            outcome = min(bets)[1]
        elif possible and ended:
            if min(p_matching, p_not_matching) < self._alpha:
                outcome = "matching" if p_matching < p_not_matching else "not matching"
            elif self._unscored and min(p_values(self._scored)) < self._alpha:
                outcome = "incomplete"
        return Stopping(
            outcome=outcome,
            stopped=bool(bets) or (not self._signal and self._next > 0),
            items=self._items,
            of=len(self._order.clusters),
            unscored=self._unscored,
            unit=self._order.unit,
            decided_after=min(bets)[0] if bets else None,
            p_matching=p_matching,
            p_not_matching=p_not_matching,
        )


def stopping_after(
    order: ItemOrder,
    dense: Scores,
    compressed: Scores,
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    chance: float = 0.0,
    score_range: Range = (0.0, 1.0),
    family_size: int = 1,
) -> Stopping | None:
    """Where the stopping rule ended with these scores, or where the items ran out; None while it needs more."""
    signal = signal_after(order, dense, chance=chance, alpha=alpha, score_range=score_range)
    if signal is None:
        return None
    settings = {"margin": margin, "alpha": alpha, "chance": chance}
    rule = EarlyStop(order, **settings, signal=signal, score_range=score_range, family_size=family_size)
    while rule.batch is not None:
        if not all(item in dense and item in compressed for item in rule.batch):
            return None
        rule.feed(dense, compressed)
    return rule.state


class _Side:
    """A sequential test and the scores it was fed, with unscored items replaced or left out."""

    def __init__(self, test: SequentialTest, instead: Range | None) -> None:
        self._test, self._instead = test, instead
        self._dense: list[Floats] = []
        self._compressed: list[Floats] = []
        self._labels: list[Hashable] = []

    def feed(self, order: ItemOrder, batch: Sequence[str], dense: Scores, compressed: Scores) -> None:
        """Bet on the scores of a batch."""
        if self._instead is None:
            batch = [item for item in batch if dense[item] is not None and compressed[item] is not None]
        if_dense, if_compressed = self._instead or (0.0, 0.0)
        self._dense.append(filled(batch, dense, if_dense))
        self._compressed.append(filled(batch, compressed, if_compressed))
        labels = [order.clusters[item] for item in batch]
        self._labels += labels
        whole = order.largest_cluster is not None
        self._test.update(self._dense[-1], self._compressed[-1], labels if whole else None)

    def after(self, decision: Verdict) -> int:
        """The number of bets after which this was the decision; 0 if it was not."""
        state = self._test.state
        return state.decided_after or 0 if state.decision == decision else 0

    def p_values(self, *, margin: float, chance: float, possible: bool, score_range: Range) -> tuple[float, float]:
        """The p values of "matching" and "not matching", each divided by the share of alpha that its test has.

        They are those of the bets or, if `possible` and smaller, those of the fixed-sample test.
        """
        state = self._test.state
        p = [state.p_matching / BETS_SHARE, state.p_not_matching / BETS_SHARE]
        if possible and len(set(self._labels)) > 1:
            codes = cluster_codes(self._labels)
            dense, compressed = np.concatenate(self._dense), np.concatenate(self._compressed)
            low, high = score_range
            scores = PairedScores(dense=dense, compressed=compressed[None], cluster=codes, low=low, high=high)
            test = loss_test(scores, margin, chance)
            share = 1 - BETS_SHARE
            p = [min(p[0], test.p_above / share), min(p[1], test.p_below / share)]
        return min(1.0, p[0]), min(1.0, p[1])


def cluster_codes(labels: Sequence[Hashable]) -> Codes:
    """Clusters numbered from 0, in order of appearance."""
    order = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], dtype=np.int64)


def filled(items: Sequence[str], scores: Scores, instead: float) -> Floats:
    """Scores of items (items,), with `instead` in place of those that are None."""
    given = (scores[item] for item in items)
    return np.array([instead if score is None else score for score in given], dtype=np.float64)
