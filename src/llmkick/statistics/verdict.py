"""The verdict on paired scores, and the bounds of the loss: both from one test of a mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np
from scipy import optimize, special

from llmkick.statistics.mean import MeanTest, UnobservedMoments, mean_test
from llmkick.statistics.variance import Codes, Floats, Range

Verdict = Literal["matching", "not matching", "undecided", "no signal", "incomplete"]

# Graded items that were not seen lose this part of the way from the worst observed loss to their whole score. At a
# half, 30 answers with F1-like scores err in 6.6 % of draws; at 1, thirty dialogues of which none lost anything are
# rarely shown to match (benchmarks/statistics.py).
WHOLE_LOSS = 2 / 3


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Aligned scores without gaps, every one in [low, high].

    What does not depend on the loss that is tested is computed once: the bounds are found by a dozen tests each.
    """

    dense: Floats  # (items,)
    compressed: Floats  # (seeds, items)
    cluster: Codes  # (items,), codes 0 … clusters − 1
    low: float
    high: float

    @cached_property
    def clusters(self) -> int:
        """Number of clusters, the independent units of the comparison."""
        return int(self.cluster.max()) + 1 if self.cluster.size else 0

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Mean dense and compressed score; None without items."""
        if not self.dense.size:
            return None, None
        return float(self.dense.mean()), float(self.compressed.mean())

    @cached_property
    def binary(self) -> bool:
        """Whether every score is an end of the score range."""
        return all(bool(((x == self.low) | (x == self.high)).all()) for x in (self.dense, self.compressed))

    @cached_property
    def identical(self) -> bool:
        """Whether every item has the score of the dense model in every seed."""
        return bool((self.compressed == self.dense).all())

    @cached_property
    def _top(self) -> float:
        """The highest observed score."""
        return float(max(self.dense.max(), self.compressed.max()))

    @cached_property
    def _change(self) -> float:
        """The largest change of an item's mean score; without any, as much as any item could change."""
        return float(np.abs(self.compressed.mean(axis=0) - self.dense).max()) or self._top - self.low

    @cached_property
    def _any_lost(self) -> bool:
        """Whether any score is below that of the dense model."""
        return bool((self.compressed < self.dense).any())

    def shortfall(self, relative_loss: float, chance: float = 0.0) -> Floats:
        """t = c − (1 − r)·d with scores above chance: (seeds, items). E[t] = 0 if the relative loss is exactly r."""
        return (self.compressed - chance) - (1 - relative_loss) * (self.dense - chance)

    def shortfall_range(self, relative_loss: float, chance: float = 0.0) -> Range:
        """Smallest and largest t that an item can have: each model scores the lowest or the highest observed score."""
        kept, ends = 1 - relative_loss, (self.low - chance, self._top - chance)
        corners = [c - kept * d for c in ends for d in ends]
        return min(corners), max(corners)

    def unobserved(self, relative_loss: float, chance: float = 0.0) -> tuple[UnobservedMoments, UnobservedMoments]:
        """Moments of t for items that lose badly, and for items that gain as much as any item changed.

        Only items that can lose, or gain, are counted. If no loss was observed, items are assumed to lose their whole
        score; otherwise they are between the worst observed t and that, `WHOLE_LOSS` of the way (for answers that are
        right or wrong both are the same). Gains are no larger than the largest change in either direction.
        """
        kept, (least, most) = (1 - relative_loss) * (self.dense - chance), self.shortfall_range(relative_loss, chance)
        lost, gained = self.dense > self.low, self.dense < self._top
        failed = _moments((self.low - chance) - kept[lost], otherwise=least)
        if self._any_lost:
            failed = _towards(failed, min(0.0, float(self.shortfall(relative_loss, chance).min())))
        best = np.minimum(self.dense[gained] + self._change, self._top)
        return failed, _moments((best - chance) - kept[gained], otherwise=most)


def _moments(t: Floats, *, otherwise: float) -> UnobservedMoments:
    """Mean and mean square of t; without items, those of the value `otherwise`."""
    return (
        UnobservedMoments(float(t.mean()), float((t**2).mean()))
        if t.size
        else UnobservedMoments(otherwise, otherwise**2)
    )


def _towards(failed: UnobservedMoments, worst: float) -> UnobservedMoments:
    """Between the worst observed t and items that lose their whole score."""
    seen = UnobservedMoments(max(failed.mean, worst), min(failed.square, worst**2))
    return UnobservedMoments(
        WHOLE_LOSS * failed.mean + (1 - WHOLE_LOSS) * seen.mean,
        WHOLE_LOSS * failed.square + (1 - WHOLE_LOSS) * seen.square,
    )


def loss_test(scores: PairedScores, relative_loss: float, chance: float = 0.0) -> MeanTest:
    """Test of E[c − (1 − r)·d], scores above chance: p_above small proves a loss below r, p_below small one above r."""
    test = mean_test(
        scores.shortfall(relative_loss, chance),
        scores.cluster,
        scores.unobserved(relative_loss, chance),
        binary=scores.binary,
    )
    if scores.identical:
        return replace(test, least_p_above=_chance_of_no_change(scores, relative_loss, chance))
    if scores.binary and len(scores.compressed) == 1 and scores.clusters == scores.dense.size:
        return replace(test, least_p_below=_mid_p_of_losses(scores, relative_loss, chance))
    return test


def _chance_of_no_change(scores: PairedScores, relative_loss: float, chance: float) -> float:
    """Probability that no score changes at a relative loss of r, if items fail independently of each other.

    An item loses at most the best score, so a loss of r takes a minimum number of items. If few items make up the whole
    loss (of 60 items at accuracy 0.95: three), an unchanged sample is less surprising than its variance suggests.
    """
    dense = float(scores.dense.mean()) - chance
    most = float(scores.dense.max()) - scores.low
    failing_share = relative_loss * dense / most if most > 0 else 0.0
    return float((1 - min(max(failing_share, 0.0), 1.0)) ** scores.dense.size)


def _mid_p_of_losses(scores: PairedScores, relative_loss: float, chance: float) -> float:
    """Mid-p of as many losses among the answers that differ, if the relative loss is r (McNemar's test at r = 0).

    Few answers that differ are discrete: three losses of three are beyond Student's quantile, yet they happen in one of
    eight samples without a loss. Given how many differ, the losses among them are binomial; their share is a half and
    half the net losses that r implies (mid-p: Fagerland et al. 2013). Of 500 settings the lower bound then misses in at
    most 5.5 %, and a loss three times the margin is shown in at most 2 points fewer draws.
    """
    compressed = scores.compressed[0]
    lost, gained = int((compressed < scores.dense).sum()), int((compressed > scores.dense).sum())
    if not lost:
        return 0.0  # how far below 0 a loss may be is not in the share of losses, but in the number of gains
    changed = lost + gained
    implied = relative_loss * (float(scores.dense.mean()) - chance) * scores.dense.size / (scores.high - scores.low)
    share = min(max((1 + implied / changed) / 2, 0.0), 1.0)
    as_many = special.betainc(lost, gained + 1, share)
    more = special.betainc(lost + 1, gained, share) if gained else 0.0
    return float(as_many + more) / 2


def has_signal(scores: PairedScores, chance: float, alpha: float) -> bool:
    """Whether the dense model is above chance, one-sided; if chance is 0, a single success proves it."""
    if scores.dense.mean() <= max(chance, scores.low):
        return False
    if chance <= scores.low:
        return True
    if scores.clusters < 2:
        return False
    ends = (UnobservedMoments(end, end**2) for end in (scores.low - chance, scores.high - chance))
    test = mean_test(scores.dense[None] - chance, scores.cluster, (next(ends), next(ends)), binary=scores.binary)
    # The caution of df_above is for rare losses: scores above chance are not rare.
    return replace(test, df_above=test.df).p_above < alpha


def decide(
    scores: PairedScores, *, margin: float, chance: float, alpha: float, same_model: bool | None = None
) -> Verdict:
    """The verdict on complete scores; it is about the part of the score above chance.

    A model matches itself (`same_model`), and so do scores that are identical on every item if their origin is unknown
    (None). A model known to be different (False) has to pass the test even so: at a true loss of the margin and
    accuracy 0.3, all of 60 items agree in 40 % of draws.
    """
    if not has_signal(scores, chance, alpha):
        return "no signal"
    if matches_itself(scores, same_model):
        return "matching"
    if scores.clusters < 2:
        return "undecided"
    test = loss_test(scores, margin, chance)
    if test.p_above < alpha:
        return "matching"
    return "not matching" if test.p_below < alpha else "undecided"


def matches_itself(scores: PairedScores, same_model: bool | None) -> bool:
    """Whether both models are one: it is known, or it is unknown and no score differs."""
    return bool(same_model) or (same_model is None and scores.identical)


def loss_bounds(
    scores: PairedScores, *, margin: float, alpha: float, chance: float = 0.0, same_model: bool | None = False
) -> Range | None:
    """The pair of one-sided bounds of the relative loss at level 1 − alpha: the losses that `loss_test` leaves open.

    The loss is above the first with error alpha, and below the second with error alpha. "Matching" is the same as an
    upper bound below the margin, "not matching" as a lower bound above it. A ratio of means has its bounds where the
    test of c − (1 − r)·d turns (Fieller 1954). None if there is no lower bound: a single cluster, or a dense score not
    clearly above chance.
    """
    if not scores.dense.size or scores.dense.mean() <= chance:
        return None
    if matches_itself(scores, same_model):
        return 0.0, 0.0
    if scores.clusters < 2:
        return None
    dense, compressed = float(scores.dense.mean()) - chance, float(scores.compressed.mean()) - chance
    estimate = 1 - compressed / dense
    # The loss is largest at the lowest possible score.
    ceiling = max(estimate, 1 - (scores.low - chance) / dense)
    # Some losses are asked about more than once: the margin, and the ends between which a bound is.
    test = cache(lambda r: loss_test(scores, r, chance))
    lower = where_rejected(lambda r: test(r).p_below, estimate, alpha, limit=estimate - 256, margin=margin)
    upper = where_rejected(lambda r: test(r).p_above, estimate, alpha, limit=ceiling, margin=margin)
    return None if lower is None else (lower, ceiling if upper is None else upper)


def where_rejected(
    p: Callable[[float], float], estimate: float, alpha: float, *, limit: float, margin: float
) -> float | None:
    """Where p falls to alpha on the way from the estimate to the limit; None if it does not.

    p need not fall steadily. The bound is on the side of the margin that p at the margin says.
    """
    # The limit itself is excluded: no distribution has that loss.
    start, furthest = estimate, estimate + 0.999 * (limit - estimate)
    if (margin - estimate) * (furthest - margin) > 0:
        if p(margin) < alpha:
            furthest = margin
        else:
            start = margin
    inner, reach = start, abs(furthest - start)
    step = min(1 / 64, reach)
    while step:
        outer = furthest if step == reach else start + math.copysign(step, furthest - start)
        if p(outer) < alpha:
            return float(optimize.brentq(lambda r: p(r) - alpha, inner, outer, xtol=1e-7))
        inner, step = outer, 0.0 if step == reach else min(1.5 * step, reach)
    return None
