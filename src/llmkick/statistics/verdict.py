"""The verdict on paired scores: the test of a mean, and the interval that inverts the test."""

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
        """Number of clusters, which the bootstrap resamples whole."""
        return int(self.cluster.max()) + 1 if self.cluster.size else 0

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Mean dense and compressed score; None without items."""
        if not self.dense.size:
            return None, None
        return float(self.dense.mean()), float(self.compressed.mean())

    @property
    def binary(self) -> bool:
        """Whether every score is an end of the score range."""
        return all(bool(((x == self.low) | (x == self.high)).all()) for x in (self.dense, self.compressed))

    @property
    def identical(self) -> bool:
        """Whether every item has the score of the dense model in every seed."""
        return bool((self.compressed == self.dense).all())

    def shortfall(self, relative_loss: float, chance: float = 0.0) -> Floats:
        """t = c − (1 − r)·d with scores above chance: (seeds, items). E[t] = 0 if the relative loss is exactly r."""
        return (self.compressed - chance) - (1 - relative_loss) * (self.dense - chance)

    def shortfall_range(self, relative_loss: float, chance: float = 0.0) -> Range:
        """Smallest and largest t that an item can have: each model scores the lowest or the highest observed score."""
        top = max(self.dense.max(), self.compressed.max())
        kept, ends = 1 - relative_loss, (self.low - chance, float(top) - chance)
        corners = [c - kept * d for c in ends for d in ends]
        return min(corners), max(corners)

    def unobserved(self, relative_loss: float, chance: float = 0.0) -> tuple[UnobservedMoments, UnobservedMoments]:
        """Moments of t for items that lose badly, and for items that gain as much as any item changed.

        Only items that can lose, or gain, are counted. If no loss was observed, items are assumed to lose their whole
        score; otherwise they are halfway between the worst observed t and that (for answers that are right or wrong
        both are the same). Gains are no larger than the largest change in either direction.
        """
        top = float(max(self.dense.max(), self.compressed.max()))
        change = float(np.abs(self.compressed.mean(axis=0) - self.dense).max()) or top - self.low
        kept, (least, most) = (1 - relative_loss) * (self.dense - chance), self.shortfall_range(relative_loss, chance)
        lost, gained = self.dense > self.low, self.dense < top
        failed = _moments((self.low - chance) - kept[lost], otherwise=least)
        if bool((self.compressed < self.dense).any()):
            failed = _halfway(failed, min(0.0, float(self.shortfall(relative_loss, chance).min())))
        best = np.minimum(self.dense[gained] + change, top)
        return failed, _moments((best - chance) - kept[gained], otherwise=most)


def _moments(t: Floats, *, otherwise: float) -> UnobservedMoments:
    """Mean and mean square of t; without items, those of the value `otherwise`."""
    return (
        UnobservedMoments(float(t.mean()), float((t**2).mean()))
        if t.size
        else UnobservedMoments(otherwise, otherwise**2)
    )


def _halfway(failed: UnobservedMoments, worst: float) -> UnobservedMoments:
    """Halfway between the worst observed t and items that lose their whole score."""
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
    """One-sided tests of E[c − (1 − r)·d] that two-sided intervals are made of."""
    return score_test(
        scores.shortfall(relative_loss, chance), scores.cluster, *scores.unobserved(relative_loss, chance)
    )


def interval_p(scores: PairedScores, relative_loss: float, chance: float = 0.0) -> float:
    """Two-sided p of a loss of r; `loss_interval` holds every r whose p is alpha or more.

    It adds the one-sided p and the probability of results that speak as strongly against r from the other side (Blaker
    2000). Towards smaller losses there may be no such results: if nothing was gained, the strongest evidence for a loss
    below r is that nothing was lost, and with few expected losses even that is no surprise. All of alpha then belongs
    to the other side. Half of alpha would make intervals too wide: of 60 items of which one or two are expected to
    differ, they would cover the truth in 99.7 % of draws.
    """
    test = interval_test(scores, relative_loss, chance)
    if test.p_above <= test.p_below:
        return 2 * test.p_above
    return test.p_below if _out_of_reach(scores, test.p_below, relative_loss, chance) else 2 * test.p_below


def _out_of_reach(scores: PairedScores, p: float, relative_loss: float, chance: float) -> bool:
    """Whether items of which some lost and none gained can never show a loss below r at this p."""
    if scores.identical or bool((scores.compressed > scores.dense).any()):
        return False
    unchanged = replace(scores, compressed=np.tile(scores.dense, (len(scores.compressed), 1)))
    independent = replace(unchanged, cluster=np.arange(scores.dense.size))
    # Clusters without a loss show how dense scores differ between clusters, not how losses do.
    best = replace(
        interval_test(unchanged, relative_loss, chance),
        variance=interval_test(independent, relative_loss, chance).variance,
        skewness=0.0,
    )
    return best.p_above > p


def _chance_of_no_change(scores: PairedScores, relative_loss: float, chance: float) -> float:
    """Probability that no score changes at a relative loss of r, if items fail independently of each other.

    An item loses at most the best score, so a loss of r takes a minimum number of items. If few items make up the whole
    loss (of 60 items at accuracy 0.95: three), an unchanged sample is less surprising than its variance suggests.
    """
    dense = float(scores.dense.mean()) - chance
    most = float(scores.dense.max()) - scores.low
    failing_share = relative_loss * dense / most if most > 0 else 0.0
    return float((1 - min(max(failing_share, 0.0), 1.0)) ** scores.dense.size)


def has_signal(scores: PairedScores, chance: float, alpha: float) -> bool:
    """Whether the dense model is above chance, one-sided; if chance is 0, a single success proves it."""
    if scores.dense.mean() <= max(chance, scores.low):
        return False
    if chance <= scores.low:
        return True
    if scores.clusters < 2:
        return False
    possible = (scores.low - chance, scores.high - chance)
    # Without df_above, whose caution is for rare losses: scores above chance are not rare.
    return replace(mean_test(scores.dense[None] - chance, scores.cluster, possible), df_above=None).p_above < alpha


def decide(
    scores: PairedScores, *, margin: float, chance: float, alpha: float, same_model: bool | None = None
) -> Verdict:
    """The verdict on complete scores.

    A model matches itself (`same_model`), and so do scores that are identical on every item if their origin is unknown
    (None). A model known to be different (False) has to pass the test even so: at a true loss of the margin and
    accuracy 0.3, all of 60 items agree in 40 % of draws.
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
    """Two-sided interval of the relative loss: every r that `interval_p` does not reject (Fieller 1954).

    Verdicts need stronger evidence where clusters and losses are few, so a margin just outside the interval may still
    be undecided. None if the interval has no lower end: a single cluster, or a dense score not clearly above chance.
    """
    if scores.clusters < 2 or scores.dense.mean() <= chance:
        return None
    dense, compressed = float(scores.dense.mean()) - chance, float(scores.compressed.mean()) - chance

    def p(relative_loss: float) -> float:
        return interval_p(scores, relative_loss, chance)

    estimate = 1 - compressed / dense
    # The loss is largest at the lowest possible score.
    ceiling = max(estimate, 1 - (scores.low - chance) / dense)
    lower, upper = (_crossing(p, estimate, alpha, limit=limit) for limit in (estimate - 256, ceiling))
    return None if lower is None else (lower, ceiling if upper is None else upper)


def _crossing(p: Callable[[float], float], start: float, target: float, *, limit: float) -> float | None:
    """Where p first falls to its target on the way from start to limit; None if it does not."""
    # The limit itself is excluded: no distribution has that loss.
    furthest = 0.999 * abs(limit - start)
    inner, step = start, min(1 / 64, furthest)
    while step:
        outer = start + math.copysign(step, limit - start)
        if p(outer) < target:
            return float(optimize.brentq(lambda r: p(r) - target, inner, outer, xtol=1e-7))
        inner, step = outer, 0.0 if step == furthest else min(1.5 * step, furthest)
    return None
