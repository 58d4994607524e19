"""Stop early without cheating: items in random order, and a bet on every one of them against each claim.

Two claims are bet against: "the relative loss is the margin or more" and "it is the margin or less". Who
stakes the fraction λ on t = c − (1 − margin)·d multiplies his wealth by 1 + λ·t. If the claim is true no
strategy gains in expectation, so by Ville's inequality the wealth ever reaches 1 / alpha in at most a share
alpha of runs, however often one looks (Waudby-Smith & Ramdas 2024, arXiv:2010.09686). Here the wealth is
spread evenly over constant fractions.

What is decided is E[t] as in `compare`, for the items alone or for whole clusters:

- Few large clusters (subjects): `stratified_order`, one bet an item. The clusters are fixed strata. With λ
  constant, the product over strata is at most what their common mean would give (arithmetic over geometric
  mean): differences between strata make the bet safer, up to the rounding of each one's share.
- Many small clusters that stand for more of their kind (passages, stories): `whole_cluster_order`, one bet a
  cluster, `SequentialTest(largest_cluster=…)`. Clusters of very different size make for small bets.
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

# Shares of the largest stake that cannot ruin. The best stake is mean / variance of t: a share of about 0.03
# close to the margin, 0.9 for a model that changes almost nothing.
STAKES = np.geomspace(0.03, 0.9, 10)


@dataclass(frozen=True, kw_only=True)
class SequentialState:
    """Where a sequential comparison stands."""

    decision: Literal["matching", "not matching", "undecided"]
    items: int
    bets: int  # items or clusters
    decided_after: int | None  # bets
    dense: float | None
    compressed: float | None
    relative_drop: float | None  # as observed; after early stopping somewhat exaggerated
    p_matching: float  # valid at every look: 1 / the largest wealth so far
    p_not_matching: float


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """Where a comparison stands, or stood when it stopped."""

    outcome: Verdict
    stopped: bool  # before the items ran out
    items: int  # asked
    of: int
    unscored: int
    unit: Literal["item", "cluster"]
    decided_after: int | None  # bets
    p_matching: float  # valid at every look
    p_not_matching: float


class SequentialTest:
    """Is the relative loss below or above the margin? Feed batches until the decision is made.

    It answers the same whatever the batch sizes. A task without a signal (dense score at chance) is to be
    recognised before: the dense scores do not depend on the compressed model. If the items run out undecided,
    undecided is the verdict: testing once more with `compare` would spend alpha twice.
    """

    def __init__(
        self,
        *,
        margin: float = 0.05,
        alpha: float = 0.05,
        score_range: tuple[float, float] = (0.0, 1.0),
        largest_cluster: int | None = None,
    ) -> None:
        low, high = score_range
        if not 0 < margin < 1 or not 0 < alpha < 0.5:
            raise ConfigError(f"margin {margin} must lie in (0, 1) and alpha {alpha} in (0, 0.5)")
        if not 0 <= low < high:
            raise ConfigError(f"score range {score_range} must start at 0 or above and end higher")
        if largest_cluster is not None and largest_cluster < 1:
            raise ConfigError(f"largest_cluster {largest_cluster} must be at least 1 item")
        self._range, self._kept = score_range, 1 - margin
        self._largest = largest_cluster
        self._threshold = -math.log(alpha)
        self._stakes = _stakes(self._kept, score_range)
        # Logarithms, first for the claim that ends in "matching": the wealth of each stake, the best total.
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
        """Bet on a batch of paired scores in the order given; clusters, if they are the bets, come whole."""
        d, c = self._checked(dense), self._checked(compressed)
        if d.size != c.size:
            raise DataError(f"{d.size} dense scores against {c.size} compressed ones; give pairs")
        shortfall = c - self._kept * d
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
        """The decision so far and what it rests on."""
        dense, compressed = (total / self._items if self._items else None for total in self._sums)
        drop = 1 - compressed / dense if dense and compressed is not None else None
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
        """Play values (bets,) one after the other; the first wealth to reach 1 / alpha decides for good."""
        crossed = []
        for side, stakes in enumerate(self._stakes):
            path = self._wealth[side] + np.cumsum(np.log1p(np.outer(values, stakes)), axis=0)
            if not values.size:
                continue
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
        """Sums over the clusters of a batch, divided by the largest cluster: in the range of an item."""
        if len(clusters) != values.size:
            raise DataError(f"{len(clusters)} cluster labels for {values.size} items; give one an item")
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
    """Sums over clusters in their order of appearance, divided by the largest size: in the range of an item."""
    order = {label: index for index, label in enumerate(dict.fromkeys(clusters))}
    codes = np.array([order[label] for label in clusters], dtype=np.int64)
    sizes = np.bincount(codes, minlength=len(order))
    if sizes.size and sizes.max() > largest:
        raise DataError(f"a cluster of {sizes.max()} items; largest_cluster was given as {largest}")
    sums: Floats = np.bincount(codes, values, len(order)) / largest
    return sums


def _stakes(kept: float, score_range: tuple[float, float]) -> tuple[Floats, Floats]:
    """Stakes on t = c − kept·d: for the claim that ends in "matching", and for the other."""
    low, high = score_range
    return STAKES / (kept * high - low), -STAKES / (high - kept * low)


def log_evidence(values: Floats, stakes: Floats) -> float:
    """Logarithm of the largest wealth ever reached, spread evenly over constant stakes; never below 0."""
    if not values.size:
        return 0.0
    path = np.cumsum(np.log1p(np.outer(values, stakes)), axis=0)
    return max(0.0, float(np.logaddexp.reduce(path, axis=1).max()) - math.log(stakes.size))


def confidence_sequence(
    dense: Floats,
    compressed: Floats,
    *,
    alpha: float,
    clusters: Sequence[Hashable] | None = None,
    largest_cluster: int | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[float, float] | None:
    """Every relative loss that no bet at alpha / 2 a side rules out; holds whenever the looking stops.

    Scores in the order in which they were asked. None when the dense scores are too low to bound it, or (at
    most in a share alpha of runs) when nothing is left.
    """

    def evidence(relative_loss: float, side: int) -> float:
        kept = 1 - relative_loss
        shortfall = compressed - kept * dense
        if clusters is not None:
            shortfall = cluster_bets(shortfall, clusters, largest_cluster or 1)
        return log_evidence(shortfall, _stakes(kept, score_range)[side]) - math.log(2 / alpha)

    most, least = 1 - 1e-9, -1.0
    while evidence(least, 1) <= 0:  # "no more is lost than this": falls with what is claimed
        least *= 2
        if least < -256:
            return None
    lower = float(optimize.brentq(evidence, least, most, args=(1,), xtol=1e-6)) if evidence(most, 1) < 0 else 1.0
    upper = 1.0
    if evidence(most, 0) > 0:  # "no less is lost than this": rises with what is claimed
        upper = float(optimize.brentq(evidence, least, most, args=(0,), xtol=1e-6))
    return (lower, upper) if lower <= upper else None
