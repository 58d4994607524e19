"""Stop asking when the verdict is known: the order of the items, the looks, and what counts at each of them.

Both models are asked the same batches in the same seeded order. Before anything is compared the dense model has
to show a signal; then two claims are bet against (see `sequential`), and the first that falls is the verdict. Where
the items run out first, the test of a fixed number of items has the last word: it tells more than the bets do. Bets
and test may err in half of alpha each, together in alpha.
Everything follows from the scores alone, so that a run that was stopped and goes on stops at the same item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.paired import Comparison, compare
from llmkick.statistics.sequential import (
    STAKES,
    Floats,
    SequentialTest,
    Stopping,
    cluster_bets,
    confidence_sequence,
    log_evidence,
    stratified_order,
    whole_cluster_order,
)
from llmkick.statistics.verdict import (
    Codes,
    PairedScores,
    Range,
    Verdict,
    has_signal,
    loss_interval,
    loss_test,
)

Scores = Mapping[str, float | None]

# Items between two looks: few, because what is decided between two looks is asked in vain.
LOOK_ITEMS = 32
INTERVAL_METHOD = "confidence sequence by betting; on all items also Fieller, cluster-robust"
# Many small clusters (the questions on a passage) stand for more of their kind: each is a bet of its own. Few or
# large ones (subjects) would leave too few bets: they are strata, fixed, each represented evenly from the start.
LARGEST_BET, FEWEST_BETS = 8, 30


@dataclass(frozen=True, kw_only=True)
class AskingOrder:
    """The batches in which items are asked; between two of them one may stop."""

    batches: tuple[tuple[str, ...], ...]
    clusters: Mapping[str, Hashable]
    largest_cluster: int | None  # None: a bet an item, in strata

    @property
    def ids(self) -> tuple[str, ...]:
        """Every item in its place."""
        return tuple(item for batch in self.batches for item in batch)

    @property
    def unit(self) -> Literal["item", "cluster"]:
        """What one bet is on."""
        return "item" if self.largest_cluster is None else "cluster"


def asking_order(
    ids: Sequence[str],
    clusters: Mapping[str, Hashable],
    *,
    seed: int = 0,
    look: int = LOOK_ITEMS,
    together: bool = False,
) -> AskingOrder:
    """Seeded: stratified by cluster, or small clusters whole and shuffled; batches of `look` or a little more.

    `together` keeps clusters whole whatever their number: in a conversation one turn needs the one before.
    """
    sizes = Counter(clusters[item] for item in ids)
    largest = max(sizes.values(), default=1)
    whole = largest > 1 and (together or (largest <= LARGEST_BET and len(sizes) >= FEWEST_BETS))
    order = whole_cluster_order(ids, clusters, seed) if whole else stratified_order(ids, clusters, seed)
    batches: list[list[str]] = []
    for item in order:
        full = not batches or len(batches[-1]) >= look
        if full and not (whole and batches and clusters[batches[-1][-1]] == clusters[item]):
            batches.append([])
        batches[-1].append(item)
    return AskingOrder(
        batches=tuple(map(tuple, batches)),
        clusters={item: clusters[item] for item in ids},
        largest_cluster=largest if whole else None,
    )


def signal_after(
    order: AskingOrder,
    dense: Scores,
    *,
    chance: float = 0.0,
    alpha: float = 0.05,
    score_range: Range = (0.0, 1.0),
) -> bool | None:
    """Whether the dense model is above chance: True as soon as the records prove it, None while they do not tell.

    `dense` holds the scores of the first batches. A bet at every look; when the items run out without proof, the
    test of the fixed number of items has the last word, as in `compare`.
    """
    asked = [item for batch in order.batches if all(item in dense for item in batch) for item in batch]
    scored = [item for item in asked if dense[item] is not None]
    values = np.array([dense[item] for item in scored], dtype=np.float64)
    low, high = score_range
    if chance <= low:
        if (values > low).any():
            return True
    else:
        excess = values - chance
        if order.largest_cluster is not None:
            excess = cluster_bets(excess, [order.clusters[item] for item in scored], order.largest_cluster)
        if log_evidence(excess, STAKES / (chance - low)) >= -np.log(alpha):
            return True
    if len(asked) < len(order.clusters):
        return None
    if not scored:
        return False
    codes = _codes([order.clusters[item] for item in scored])
    alone = PairedScores(dense=values, compressed=values[None], cluster=codes, low=low, high=high)
    return has_signal(alone, chance, alpha)


class EarlyStop:
    """Feed it batch by batch; it says when to stop.

    An unscored item counts at its worst against "matching" and at its best against "not matching": what is
    decided stands whatever it would have been. When the items run out undecided, and would be decided without
    the unscored, the outcome is "incomplete".
    """

    def __init__(
        self,
        order: AskingOrder,
        *,
        margin: float = 0.05,
        alpha: float = 0.05,
        signal: bool = True,
        score_range: Range = (0.0, 1.0),
    ) -> None:
        self._order, self._signal, self._range = order, signal, score_range
        self._margin, self._alpha = margin, alpha
        self._clusters = len(set(order.clusters.values()))
        low, high = score_range
        settings: dict[str, Any] = {"margin": margin, "alpha": alpha / 2, "score_range": score_range}
        largest = order.largest_cluster
        # Which value stands for an unscored item, of the dense and of the compressed model; None leaves it out.
        self._worst = _Side(SequentialTest(**settings, largest_cluster=largest), (high, low))
        self._best = _Side(SequentialTest(**settings, largest_cluster=largest), (low, high))
        self._scored = _Side(SequentialTest(**settings, largest_cluster=largest), None)
        self._next, self._items, self._unscored = 0, 0, 0
        self.state = self._judge()

    @property
    def batch(self) -> tuple[str, ...] | None:
        """The items to ask next; None when it is over."""
        over = self.state.stopped or self._next == len(self._order.batches)
        return None if over else self._order.batches[self._next]

    def feed(self, dense: Scores, compressed: Scores) -> Stopping:
        """The scores of the next batch, which may lie among others. Raises DataError when some are missing."""
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
        """The outcome so far; "undecided" also means "go on"."""
        ended = self._next == len(self._order.batches)
        # As in `compare`: one cluster does not tell how clusters differ.
        possible = self._signal and self._clusters > 1
        last: dict[str, Any] = {"margin": self._margin, "possible": possible and ended, "score_range": self._range}
        p_matching, p_not_matching = self._worst.p_values(**last)[0], self._best.p_values(**last)[1]
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
            elif self._unscored and min(self._scored.p_values(**last)) < self._alpha:
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


class _Side:
    """The bets, and the scores they were on, with unscored items at one end or left out."""

    def __init__(self, test: SequentialTest, instead: Range | None) -> None:
        self._test, self._instead = test, instead
        self._dense: list[Floats] = []
        self._compressed: list[Floats] = []
        self._labels: list[Hashable] = []

    def feed(self, order: AskingOrder, batch: Sequence[str], dense: Scores, compressed: Scores) -> None:
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
        """After how many bets it was decided that way; 0 if it was not."""
        state = self._test.state
        return state.decided_after or 0 if state.decision == decision else 0

    def p_values(self, *, margin: float, possible: bool, score_range: Range) -> tuple[float, float]:
        """Of "matching" and of "not matching": twice the smaller of the bets' and, if `possible`, the last test's."""
        state = self._test.state
        p = [state.p_matching, state.p_not_matching]
        if possible and len(set(self._labels)) > 1:
            codes = _codes(self._labels)
            dense, compressed = np.concatenate(self._dense), np.concatenate(self._compressed)
            low, high = score_range
            test = loss_test(
                PairedScores(dense=dense, compressed=compressed[None], cluster=codes, low=low, high=high), margin
            )
            p = [min(p[0], test.p_above), min(p[1], test.p_below)]
        return min(1.0, 2 * p[0]), min(1.0, 2 * p[1])


def _codes(labels: Sequence[Hashable]) -> Codes:
    order = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], dtype=np.int64)


def filled(items: Sequence[str], scores: Scores, instead: float) -> Floats:
    """Scores of items (items,), another value where there is none."""
    found = [scores[item] for item in items]
    return np.array([instead if score is None else score for score in found], dtype=np.float64)


def compare_stopped(
    order: AskingOrder,
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
    """The comparison of the items asked until the verdict was known; `stopping` says where that was.

    The verdict, its p values and the interval (a confidence sequence) hold although it was the data that said
    when to stop. McNemar's test and the bootstrap would not, and are left out.
    Raises DataError when the records end before the verdict does.
    """
    signal = signal_after(order, dense, chance=chance, alpha=alpha, score_range=score_range)
    rule = EarlyStop(order, margin=margin, alpha=alpha, signal=bool(signal), score_range=score_range)
    asked: list[str] = []
    while rule.batch is not None:
        asked += rule.batch
        rule.feed(dense, compressed)
    state = rule.state
    plain = compare(
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
        return replace(plain, verdict="no signal", p_matching=None, p_not_matching=None, notes=(note,), stopping=state)
    interval = _interval(order, asked, dense, compressed, alpha=alpha, score_range=score_range)
    return replace(
        plain,
        verdict="matching" if same_model else state.outcome,
        interval=interval,
        interval_method="none" if interval is None else INTERVAL_METHOD,
        bootstrap_interval=None,
        mcnemar_p=None,
        p_matching=state.p_matching,
        p_not_matching=state.p_not_matching,
        notes=(*_kept_notes(plain), *_stopping_notes(state)),
        stopping=state,
    )


def _interval(
    order: AskingOrder, asked: Sequence[str], dense: Scores, compressed: Scores, *, alpha: float, score_range: Range
) -> Range | None:
    """The confidence sequence; when all items were asked, what it has in common with the interval for them all.

    Each may miss the truth in half of alpha. Unscored items are at their best for the lower end, at their worst
    for the upper.
    """
    low, high = score_range
    labels = [order.clusters[item] for item in asked]
    whole, codes = order.largest_cluster is not None, _codes(labels)
    ends: list[float] = []
    for side, (if_dense, if_compressed) in enumerate(((low, high), (high, low))):
        d, c = filled(asked, dense, if_dense), filled(asked, compressed, if_compressed)
        found = confidence_sequence(
            d,
            c,
            alpha=alpha / 2,
            clusters=labels if whole else None,
            largest_cluster=order.largest_cluster,
            score_range=score_range,
        )
        bounds = [] if found is None else [found[side]]
        if len(asked) == len(order.clusters) and d.mean() > low:
            paired = PairedScores(dense=d, compressed=c[None], cluster=codes, low=low, high=high)
            fixed = loss_interval(paired, alpha=alpha / 2)
            bounds += [] if fixed is None else [fixed[side]]
        if bounds:
            ends.append(min(bounds) if side else max(bounds))
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] <= ends[1] else None


def _kept_notes(plain: Comparison) -> list[str]:
    """Those that do not speak of the fixed number of items."""
    return [note for note in plain.notes if "unscored" not in note and "identical" not in note]


def _stopping_notes(state: Stopping) -> list[str]:
    notes = []
    if state.stopped:
        notes.append(f"decided after {state.items} of {state.of} items: the loss observed is somewhat exaggerated")
    else:
        told = "they do not decide" if state.outcome == "undecided" else "together they decide"
        notes.append(f"looked at after every batch: all {state.of} items were asked, {told}")
    if state.unscored:
        notes.append(f"{state.unscored} of {state.items} items are unscored: counted at their worst and at their best")
    return notes
