"""From paired scores to a verdict: the test on a mean, and the interval that inverts it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import optimize

from llmkick.statistics.mean import MeanTest, UnobservedMoments, mean_test, score_test
from llmkick.statistics.variance import Codes, Floats, Range

Verdict = Literal["matching", "not matching", "undecided", "no signal", "incomplete"]


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Aligned scores without gaps, every one in [low, high]."""

    dense: Floats  # (items,)
    compressed: Floats  # (seeds, items)
    cluster: Codes  # (items,), codes 0 … clusters − 1
    low: float
    high: float

    @property
    def clusters(self) -> int:
        """How many groups are resampled whole."""
        return int(self.cluster.max()) + 1 if self.cluster.size else 0

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Dense and compressed score, None without items."""
        if not self.dense.size:
            return None, None
        return float(self.dense.mean()), float(self.compressed.mean())

    @property
    def binary(self) -> bool:
        """Whether every score is one end of the range."""
        return all(bool(((x == self.low) | (x == self.high)).all()) for x in (self.dense, self.compressed))

    @property
    def identical(self) -> bool:
        """Whether every item has its dense score in every seed."""
        return bool((self.compressed == self.dense).all())

    def shortfall(self, relative_loss: float, chance: float = 0.0) -> Floats:
        """t = c − (1 − r)·d, counted from chance: (seeds, items); E[t] = 0 where the loss is exactly r."""
        return (self.compressed - chance) - (1 - relative_loss) * (self.dense - chance)

    def shortfall_range(self, relative_loss: float, chance: float = 0.0) -> Range:
        """The smallest and the largest t an item can have: all or nothing of the best score seen."""
        top = max(self.dense.max(), self.compressed.max())
        kept, ends = 1 - relative_loss, (self.low - chance, float(top) - chance)
        corners = [c - kept * d for c in ends for d in ends]
        return min(corners), max(corners)

    def unseen(self, relative_loss: float, chance: float = 0.0) -> tuple[UnobservedMoments, UnobservedMoments]:
        """The t of items like these that lose badly, and of those that gain as much as any changed.

        Only items that have something to lose, or to gain, are counted. A model that fails fails whole: where nothing
        was lost, items lose all they have, and else halfway from the worst that was seen to that (for answers right or
        wrong it is the same). Gains are no larger than the largest change in either direction.
        """
        top = float(max(self.dense.max(), self.compressed.max()))
        change = float(np.abs(self.compressed.mean(axis=0) - self.dense).max()) or top - self.low
        kept, (least, most) = (1 - relative_loss) * (self.dense - chance), self.shortfall_range(relative_loss, chance)
        lost, gained = self.dense > self.low, self.dense < top
        failed = _unseen((self.low - chance) - kept[lost], otherwise=least)
        if bool((self.compressed < self.dense).any()):
            failed = _halfway(failed, min(0.0, float(self.shortfall(relative_loss, chance).min())))
        best = np.minimum(self.dense[gained] + change, top)
        return failed, _unseen((best - chance) - kept[gained], otherwise=most)


def _unseen(t: Floats, *, otherwise: float) -> UnobservedMoments:
    """Mean and mean square; without any item those of a single value."""
    return (
        UnobservedMoments(float(t.mean()), float((t**2).mean()))
        if t.size
        else UnobservedMoments(otherwise, otherwise**2)
    )


def _halfway(failed: UnobservedMoments, worst: float) -> UnobservedMoments:
    """Between a t that was seen and items that lose all they have."""
    return UnobservedMoments(
        (failed.mean + max(failed.mean, worst)) / 2, (failed.square + min(failed.square, worst**2)) / 2
    )


def loss_test(scores: PairedScores, relative_loss: float, chance: float = 0.0) -> MeanTest:
    """Test of E[c − (1 − r)·d]: p_above small proves a loss below r, p_below small one above r."""
    possible = scores.shortfall_range(relative_loss, chance)
    test = mean_test(scores.shortfall(relative_loss, chance), scores.cluster, possible)
    return (
        replace(test, least_p_above=_chance_of_no_change(scores, relative_loss, chance)) if scores.identical else test
    )


def interval_test(scores: PairedScores, relative_loss: float, chance: float = 0.0) -> MeanTest:
    """One-sided tests of E[c − (1 − r)·d] for two-sided intervals."""
    return score_test(scores.shortfall(relative_loss, chance), scores.cluster, *scores.unseen(relative_loss, chance))


def interval_p(scores: PairedScores, relative_loss: float, chance: float = 0.0) -> float:
    """Two-sided p of a loss of r; `loss_interval` holds every r whose p is alpha or more.

    The one-sided p, and that of results which speak as strongly against r from the other side (Blaker 2000). On the
    side of the gains there may be none: where nothing was gained the most that could be said for a smaller loss than
    r is that nothing was lost, and of a few expected losses even that is no surprise. Then all of alpha belongs to
    the other side: half of it alone makes intervals too wide (in 99.7 % of draws they hold the truth of 60 items
    of which one or two are expected to differ).
    """
    test = interval_test(scores, relative_loss, chance)
    if test.p_above <= test.p_below:
        return 2 * test.p_above
    return test.p_below if _out_of_reach(scores, test.p_below, relative_loss, chance) else 2 * test.p_below


def _out_of_reach(scores: PairedScores, p: float, relative_loss: float, chance: float) -> bool:
    """Whether a loss below r could not be shown at p by these items, some of which lost and none gained."""
    if scores.identical or bool((scores.compressed > scores.dense).any()):
        return False
    unchanged = replace(scores, compressed=np.tile(scores.dense, (len(scores.compressed), 1)))
    alone = replace(unchanged, cluster=np.arange(scores.dense.size))
    # Clusters of which none lost say nothing of how they differ in losses, only in dense scores.
    best = replace(
        interval_test(unchanged, relative_loss, chance),
        variance=interval_test(alone, relative_loss, chance).variance,
        skewness=0.0,
    )
    return best.p_above > p


def _chance_of_no_change(scores: PairedScores, relative_loss: float, chance: float) -> float:
    """The least probability that no score changes when r of the score is lost, items falling independently.

    An item loses at most the best score, so r of the mean is lost by at least so many items. Where few items hold
    the whole loss (60 at accuracy 0.95: three), nothing lost is less of a surprise than a variance makes it.
    """
    dense = float(scores.dense.mean()) - chance
    most = float(scores.dense.max()) - scores.low
    falling = relative_loss * dense / most if most > 0 else 0.0
    return float((1 - min(max(falling, 0.0), 1.0)) ** scores.dense.size)


def has_signal(scores: PairedScores, chance: float, alpha: float) -> bool:
    """Whether the dense model is above chance, one-sided; where chance is 0 a single success is proof."""
    if scores.dense.mean() <= max(chance, scores.low):
        return False
    if chance <= scores.low:
        return True
    if scores.clusters < 2:
        return False
    possible = (scores.low - chance, scores.high - chance)
    # Without the caution, which is for rare losses: a score is not rare.
    return replace(mean_test(scores.dense[None] - chance, scores.cluster, possible), df_above=None).p_above < alpha


def decide(
    scores: PairedScores, *, margin: float, chance: float, alpha: float, same_model: bool | None = None
) -> Verdict:
    """The verdict on complete scores.

    A model matches itself (`same_model`), and so do scores identical on every item of which nobody knows whence
    they come (None). A model known to be another one (False) has to prove it like any: at a true loss of the
    margin, accuracy 0.3, all of 60 items agree in 40 % of draws.
    """
    if not has_signal(scores, chance, alpha):
        return "no signal"
    if same_model or (same_model is None and scores.identical):
        return "matching"
    if scores.clusters < 2:
        return "undecided"
    test = loss_test(scores, margin)
    if test.p_above < alpha:
        return "matching"
    return "not matching" if test.p_below < alpha else "undecided"


def loss_interval(scores: PairedScores, *, alpha: float, chance: float = 0.0) -> Range | None:
    """Two-sided interval on the relative loss: every r that `interval_p` leaves (Fieller 1954).

    Verdicts are surer than that where clusters and losses are few: a margin just outside may be undecided. None
    where that set has no lower end: a single cluster, or a dense score not clearly above chance.
    """
    if scores.clusters < 2 or scores.dense.mean() <= chance:
        return None
    dense, compressed = float(scores.dense.mean()) - chance, float(scores.compressed.mean()) - chance

    def p(relative_loss: float) -> float:
        return interval_p(scores, relative_loss, chance)

    estimate = 1 - compressed / dense
    # Nothing can be lost beyond the lowest score there is.
    ceiling = max(estimate, 1 - (scores.low - chance) / dense)
    lower, upper = (_crossing(p, estimate, alpha, limit=limit) for limit in (estimate - 256, ceiling))
    return None if lower is None else (lower, ceiling if upper is None else upper)


def _crossing(p: Callable[[float], float], start: float, target: float, *, limit: float) -> float | None:
    """Where p first falls to its target on the way from start to limit; None when it does not before that."""
    # The limit itself is left out: no distribution has that loss.
    furthest = 0.999 * abs(limit - start)
    inner, step = start, min(1 / 64, furthest)
    while step:
        outer = start + math.copysign(step, limit - start)
        if p(outer) < target:
            return float(optimize.brentq(lambda r: p(r) - target, inner, outer, xtol=1e-7))
        inner, step = outer, 0.0 if step == furthest else min(1.5 * step, furthest)
    return None
