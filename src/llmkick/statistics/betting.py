"""A sequential test by betting, valid however often its result is looked at while items are asked.

There is a bet against each of two hypotheses: "the relative loss is the margin or more" and "it is the margin or
less". Staking the fraction λ on t = c − (1 − margin)·d multiplies the wealth by 1 + λ·t. If the hypothesis is true, no
strategy gains in expectation, so by Ville's inequality the wealth ever reaches 1 / alpha in at most a share alpha of
runs, however often it is looked at (Waudby-Smith & Ramdas 2024, arXiv:2010.09686). The wealth is spread evenly over
constant fractions.

Scores count above chance, as in `compare`: t = (c − chance) − (1 − margin)·(d − chance).

The test is about E[t], as in `compare`. A bet is on an item or on a whole cluster:

- Strata, which are fixed (subjects): `stratified_order`, one bet per item. With a constant λ, the product over strata
  is at most what their common mean would give (arithmetic over geometric mean), so differences between strata make the
  bet safer, up to the rounding of the share of each stratum.
- Clusters, which are drawn (passages, stories): `whole_cluster_order`, one bet per cluster,
  `SequentialTest(largest_cluster=…)`. Clusters of very different sizes lead to small bets.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from llmkick.errors import ConfigError, DataError
from llmkick.statistics.verdict import Verdict

Floats = NDArray[np.float64]

# Fractions of the largest stake that cannot lose everything. The best stake is mean / variance of t: a fraction of
# about 0.03 for a loss close to the margin, 0.9 for a model that changes almost nothing.
STAKES = np.geomspace(0.03, 0.9, 10)


@dataclass(frozen=True, kw_only=True)
class SequentialState:
    """The current state of a sequential comparison."""

    decision: Literal["matching", "not matching", "undecided"]
    items: int
    bets: int  # items or clusters
    decided_after: int | None  # bets
    dense: float | None
    compressed: float | None
    relative_drop: float | None  # as observed; early stopping exaggerates it somewhat
    p_matching: float  # valid at every look: 1 / the largest wealth so far
    p_not_matching: float


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """The state of a comparison that may stop early: now, or when it stopped."""

    outcome: Verdict
    stopped: bool  # before the items ran out
    items: int  # asked so far
    of: int  # all items
    unscored: int
    unit: Literal["item", "cluster"]
    decided_after: int | None  # bets
    p_matching: float  # valid at every look
    p_not_matching: float


class SequentialTest:
    """Is the relative loss below or above the margin? Feed batches until the decision is made.

    The decision does not depend on the batch sizes. The caller has to recognise a task without a signal (dense score at
    chance) beforehand; the dense scores do not depend on the compressed model. If the items run out undecided, that is
    the verdict: another test with `compare` would spend alpha twice. Raises ConfigError for settings out of range.
    """

    def __init__(
        self,
        *,
        margin: float = 0.05,
        alpha: float = 0.05,
        chance: float = 0.0,
        score_range: tuple[float, float] = (0.0, 1.0),
        largest_cluster: int | None = None,
    ) -> None:
        low, high = score_range
        if not 0 < margin < 1 or not 0 < alpha < 0.5:
            raise ConfigError(f"margin {margin} must lie in (0, 1) and alpha {alpha} in (0, 0.5)")
        if not 0 <= low < high:
            raise ConfigError(f"score range {score_range} must start at 0 or above and end higher")
        if not 0 <= chance < high:
            raise ConfigError(f"chance {chance} must be 0 or more and below the highest score {high}")
        if largest_cluster is not None and largest_cluster < 1:
            raise ConfigError(f"largest_cluster {largest_cluster} must be at least 1 item")
        self._range, self._margin, self._chance = score_range, margin, chance
        self._largest = largest_cluster
        self._threshold = -math.log(alpha)
        self._stakes = _stakes(margin, chance, score_range)
        # Log wealth of each stake and the largest total so far: [against "margin or more", against "margin or less"].
        self._wealth = [np.zeros(STAKES.size), np.zeros(STAKES.size)]
        self._best = [0.0, 0.0]
        self._sums = [0.0, 0.0]  # dense, compressed
        self._items, self._bets = 0, 0
        self._seen: set[Hashable] = set()
        self._decision: Literal["matching", "not matching", "undecided"] = "undecided"
        self._decided_after: int | None = None

    def update(
        self,
        dense: Sequence[float] | NDArray[Any],
        compressed: Sequence[float] | NDArray[Any],
        clusters: Sequence[Hashable] | None = None,
    ) -> SequentialState:
        """Bet on a batch of paired scores in the order given.

        Clusters are given if and only if the bets are on clusters, and each has to be in one batch. Raises DataError
        for scores out of range, unequal numbers of scores, or a cluster of an earlier batch.
        """
        d, c = self._checked(dense), self._checked(compressed)
        if d.size != c.size:
            raise DataError(f"{d.size} dense scores against {c.size} compressed ones; give pairs")
        shortfall = _shortfall(d, c, self._margin, self._chance)
        if (clusters is None) != (self._largest is None):
            raise ConfigError("give clusters exactly when the test was made with largest_cluster")
        if clusters is not None:
            shortfall = self._by_cluster(shortfall, clusters)
        self._bet(shortfall)
        self._sums = [self._sums[0] + float(d.sum()), self._sums[1] + float(c.sum())]
        self._items += d.size
        return self.state

    @property
    def state(self) -> SequentialState:
        """The decision so far, with its scores and p values."""
        dense, compressed = (total / self._items if self._items else None for total in self._sums)
        drop = None
        if dense is not None and compressed is not None and dense > self._chance:
            drop = 1 - (compressed - self._chance) / (dense - self._chance)
        return SequentialState(
            decision=self._decision,
            items=self._items,
            bets=self._bets,
            decided_after=self._decided_after,
            dense=dense,
            compressed=compressed,
            relative_drop=drop,
            p_matching=math.exp(-self._best[0]),
            p_not_matching=math.exp(-self._best[1]),
        )

    def _bet(self, values: Floats) -> None:
        """Bet on values (bets,) in order; the first wealth that reaches 1 / alpha decides for good."""
        crossed = []
        for side, stakes in enumerate(self._stakes):
            if not values.size:
                continue
            path = log_wealth(values, stakes, self._wealth[side])
            total = np.logaddexp.reduce(path, axis=1) - math.log(stakes.size)
            self._wealth[side] = path[-1]
            self._best[side] = max(self._best[side], float(total.max()))
            hits = np.flatnonzero(total >= self._threshold)
            if hits.size:
                crossed.append((int(hits[0]), side))
        if crossed and self._decided_after is None:
            first, side = min(crossed)
            self._decision = "not matching" if side else "matching"
            self._decided_after = self._bets + first + 1
        self._bets += values.size

    def _by_cluster(self, values: Floats, clusters: Sequence[Hashable]) -> Floats:
        """Bets of the clusters of a batch, which must not have been in an earlier batch."""
        if len(clusters) != values.size:
            raise DataError(f"{len(clusters)} cluster labels for {values.size} items; give each item a cluster")
        order = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
        again = [label for label in order if label in self._seen]
        if again:
            raise DataError(f"cluster {again[0]!r} was in an earlier batch; feed whole clusters")
        self._seen.update(order)
        return cluster_bets(values, clusters, self._largest or 1)

    def _checked(self, scores: Sequence[float] | NDArray[Any]) -> Floats:
        low, high = self._range
        values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
        if not ((values >= low) & (values <= high)).all():
            raise DataError(f"scores must be numbers in {low} … {high}; leave unscored items out and say how many")
        return values


def cluster_bets(values: Floats, clusters: Sequence[Hashable], largest: int) -> Floats:
    """Sums over clusters in order of appearance, divided by the largest size to keep an item's range."""
    order = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
    codes = np.array([order[label] for label in clusters], dtype=np.int64)
    sizes = np.bincount(codes, minlength=len(order))
    if sizes.size and sizes.max() > largest:
        raise DataError(f"a cluster of {sizes.max()} items; largest_cluster was given as {largest}")
    sums: Floats = np.bincount(codes, values, len(order)) / largest
    return sums


def _shortfall(dense: Floats, compressed: Floats, relative_loss: float, chance: float) -> Floats:
    """t = c − (1 − r)·d with scores above chance."""
    return (compressed - chance) - (1 - relative_loss) * (dense - chance)


def _stakes(relative_loss: float, chance: float, score_range: tuple[float, float]) -> tuple[Floats, Floats]:
    """Stakes on t: against "the loss is r or more", and against "r or less"; none can lose everything."""
    ends = np.array(score_range)
    corners = _shortfall(ends[:, None], ends[None], relative_loss, chance)
    return STAKES / -corners.min(), -STAKES / corners.max()


def log_wealth(values: Floats, stakes: Floats, before: Floats) -> Floats:
    """Logarithm of the wealth of each stake after every bet: (bets, stakes), from `before` (stakes,)."""
    path: Floats = before + np.cumsum(np.log1p(np.outer(values, stakes)), axis=0)
    return path


def largest_evidence(path: Floats) -> float:
    """Logarithm of the largest total wealth on a path (bets, stakes), evenly spread at the start; at least 0."""
    if not path.size:
        return 0.0
    return max(0.0, float(np.logaddexp.reduce(path, axis=1).max()) - math.log(path.shape[1]))


def log_evidence(values: Floats, stakes: Floats) -> float:
    """Logarithm of the largest wealth reached with evenly spread constant stakes; at least 0."""
    return largest_evidence(log_wealth(values, stakes, np.zeros(stakes.size)))


def confidence_sequence(
    dense: Floats,
    compressed: Floats,
    *,
    alpha: float,
    chance: float = 0.0,
    clusters: Sequence[Hashable] | None = None,
    largest_cluster: int | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float] | None:
    """The pair of bounds of the relative loss that the bets leave open, each at alpha; valid at any stopping time.

    Scores are in the order in which the items were asked. None if the dense scores are too low to bound the loss, or
    (in at most a share 2 · alpha of runs) if the bounds cross.
    """

    def evidence(relative_loss: float, side: int) -> float:
        shortfall = _shortfall(dense, compressed, relative_loss, chance)
        if clusters is not None:
            shortfall = cluster_bets(shortfall, clusters, largest_cluster or 1)
        return log_evidence(shortfall, _stakes(relative_loss, chance, score_range)[side]) - math.log(1 / alpha)

    excess = float(dense.mean()) - chance
    if excess <= 0:
        return None
    # The loss is largest at the lowest score, which is below chance where chance is not the lowest.
    most, least = 1 + (chance - score_range[0]) / excess - 1e-9, -1.0
    while evidence(least, 1) <= 0:  # evidence that more is lost: falls with the loss
        least *= 2
        if least < -256:
            return None
    lower = float(optimize.brentq(evidence, least, most, args=(1,), xtol=1e-6)) if evidence(most, 1) < 0 else most
    upper = most
    if evidence(most, 0) > 0:  # evidence that less is lost: rises with the loss
        upper = float(optimize.brentq(evidence, least, most, args=(0,), xtol=1e-6))
    return (lower, upper) if lower <= upper else None
