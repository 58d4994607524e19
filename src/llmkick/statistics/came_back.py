"""What came back: of what compression took from a model, the part that a recovery returned, and the part lost anew."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkick.errors import DataError
from llmkick.statistics.pairing import check_settings, pair_scores, some_of
from llmkick.statistics.ratio import Ratio, ratio_of_sums
from llmkick.statistics.variance import Codes, Floats

# Scores by item id; None is an item without a score.
ItemScores = Mapping[str, float | None]
# The scores of a model for each calibration seed; None is the "seed" of a method without calibration.
ScoresBySeed = Mapping[int | None, ItemScores]

NO_ITEM = "no item has a score from every model"
BackOutcome = Literal["brought back", "less than control", "undecided", "no control", "nothing lost"]
ChangeOutcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Items with one history: what the dense model, the compressed one and the recovered one made of them."""

    dense: str
    compressed: str
    recovered: str
    items: float  # the mean over seeds


@dataclass(frozen=True, kw_only=True)
class CameBack:
    """A recovered model beside its compressed base and the dense model, on the same items of one task.

    Shares are of score: of right and wrong answers that is a share of items. `detail` and `group` name a part of the
    task, and are empty for the whole. An outcome is about `difference`, the share that returned less that of the
    control: another calibration seed of the base, without recovery.
    """

    task: str
    recipe: str
    base: str
    recovery: str
    detail: str
    group: str
    seeds: tuple[int, ...]
    n: int  # items scored by all models, in every seed
    unscored: int
    clusters: int
    graded: bool  # scores between right and wrong: `flow` tells items at the dense score or above from those below
    flow: tuple[Flow, ...]
    lost: float  # items below the dense score after compression; mean over seeds
    kept: float  # items with a dense score that compression kept
    returned: Ratio  # of the lost score
    newly_lost: Ratio  # of the kept score
    newly_lost_control: Ratio  # of the kept score, lost under the next calibration seed without recovery
    gained: Ratio  # of the score that neither the dense nor the compressed model had
    control: Ratio  # of the lost score, back under the next calibration seed without recovery
    difference: Ratio  # returned − control, paired
    outcome: BackOutcome
    always: Ratio  # of the lost score, returned under every seed of the recovery; if the base depends on none
    change: Ratio  # score of the recovered model − score of its base
    against_base: ChangeOutcome
    alpha: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BackNames:
    """What is compared: the recovered recipe, its base, the name of its recovery, the task and its part."""

    task: str = ""
    recipe: str = ""
    base: str = ""
    recovery: str = ""
    detail: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class _Aligned:
    """Scores without gaps: dense (items,), the others (seeds, items)."""

    dense: Floats
    base: Floats
    recovered: Floats
    control: Floats | None  # None: there is no control
    cluster: Codes
    seeds: tuple[int, ...]
    unscored: int

    @property
    def graded(self) -> bool:
        return not all(np.isin(x, (0.0, 1.0)).all() for x in (self.dense, self.base, self.recovered))

    @property
    def lost(self) -> Floats:
        """The score that compression took from each item: (seeds, items)."""
        return np.maximum(self.dense - self.base, 0.0)

    def back(self, other: Floats) -> Floats:
        """The part of the lost score that another model has again: (seeds, items)."""
        return np.clip(other - self.base, 0.0, self.lost)


def what_came_back(
    dense: ItemScores,
    base: ScoresBySeed,
    recovered: ScoresBySeed,
    *,
    clusters: Mapping[str, Hashable] | None = None,
    strata: Mapping[str, Hashable] | None = None,
    alpha: float = 0.05,
    names: BackNames | None = None,
) -> CameBack:
    """Of what the base lost against the dense model, what share has the recovered model again?

    Scores lie in 0 … 1. For each item the base lost max(d − c, 0) and kept min(d, c). Of the lost score
    min(max(r − c, 0), lost) returned; of the kept score max(kept − r, 0) is newly lost. Of the score that neither
    had, 1 − max(d, c), the recovered model gained max(r − max(d, c), 0). If answers are right or wrong, these are
    shares of items. Every recovered seed is paired with its base of the same seed; in the control, that base is paired
    with the base of the next seed (the last with the first), which no recovery touched: what returns there is what any
    change of the weights flips back. Groups of items and seeds count as in `compare`.
    Raises DataError for items or seeds that do not match.
    """
    check_settings(0.05, alpha)
    scores, no_control = _aligned(dense, base, recovered, clusters=clusters, strata=strata)
    graded = scores.graded
    shares = _Shares(scores, alpha)
    control, difference = shares.against_control(no_control)
    change = shares.change()
    nothing_lost = bool(scores.dense.size) and not scores.lost.any()
    fell = scores.base < scores.dense
    named = names or BackNames()
    return CameBack(
        **vars(named),
        seeds=scores.seeds,
        n=scores.dense.size,
        unscored=scores.unscored,
        clusters=int(scores.cluster.max()) + 1 if scores.cluster.size else 0,
        graded=graded,
        flow=_flow(scores),
        lost=float(fell.sum(axis=1).mean()),
        kept=float(((np.minimum(scores.dense, scores.base) > 0) & ~fell).sum(axis=1).mean()),
        returned=shares.of(scores.back(scores.recovered), scores.lost, "nothing was lost"),
        newly_lost=shares.newly_lost(scores.recovered),
        newly_lost_control=shares.newly_lost(scores.control, no_control),
        gained=shares.gained(),
        control=control,
        difference=difference,
        outcome=_outcome(difference, alpha, nothing_lost=nothing_lost),
        always=shares.always(of_one_base=None in base),
        change=change,
        against_base=_direction(change, alpha),
        alpha=alpha,
        notes=_notes(scores, graded=graded),
    )


def _aligned(
    dense: ItemScores,
    base: ScoresBySeed,
    recovered: ScoresBySeed,
    *,
    clusters: Mapping[str, Hashable] | None,
    strata: Mapping[str, Hashable] | None,
) -> tuple[_Aligned, str]:
    """The scores of all items that every model has scored, and why there is no control, if there is none."""
    seeds = _paired_seeds(base, recovered)
    rows = {f"base, {seed}": scores for seed, scores in base.items()}
    rows |= {f"recovered, {seed}": recovered[seed] for seed in seeds}
    pairs = pair_scores(dense, rows, None, clusters=clusters, strata=strata)
    pairs.check_range(0.0, 1.0)
    scores = pairs.complete(0.0, 1.0)
    row = dict(zip(rows, scores.compressed, strict=True))
    of_base = list(base)
    following = dict(zip(of_base, [*of_base[1:], *of_base[:1]], strict=True))
    its_base = {seed: None if None in base else seed for seed in seeds}
    reason = ""
    if None in base:
        reason = "the compressed model does not depend on the calibration seed, so there is no second one"
    elif len(base) == 1:
        reason = "one calibration seed: the control is the compressed model of a second one"
    return _Aligned(
        dense=scores.dense,
        base=np.stack([row[f"base, {its_base[seed]}"] for seed in seeds]),
        recovered=np.stack([row[f"recovered, {seed}"] for seed in seeds]),
        control=None if reason else np.stack([row[f"base, {following[seed]}"] for seed in seeds]),
        cluster=scores.cluster,
        seeds=tuple(seed for seed in seeds if seed is not None),
        unscored=int(pairs.dense.size - scores.dense.size),
    ), reason


def _paired_seeds(base: ScoresBySeed, recovered: ScoresBySeed) -> Sequence[int | None]:
    """The seeds of the recovered model whose base was asked."""
    seeds = list(recovered) if None in base else [seed for seed in recovered if seed in base]
    if not seeds or (None in base and len(base) > 1):
        raise DataError(
            f"the recovered model has the seeds {some_of(list(recovered))}, its base {some_of(list(base))}: "
            "ask both with the same seeds"
        )
    return seeds


@dataclass(frozen=True)
class _Shares:
    """The shares of a recovered model."""

    scores: _Aligned
    alpha: float

    def of(self, part: Floats, whole: Floats, nothing: str, low: float = 0.0) -> Ratio:
        reason = nothing if self.scores.dense.size else NO_ITEM
        return ratio_of_sums(part, whole, self.scores.cluster, reach=(low, 1.0), alpha=self.alpha, nothing=reason)

    def newly_lost(self, other: Floats | None, absent: str = "") -> Ratio:
        """The share of the kept score that another model lost."""
        if other is None:
            return Ratio(value=None, reason=absent)
        kept = np.minimum(self.scores.dense, self.scores.base)
        return self.of(np.maximum(kept - other, 0.0), kept, "nothing was kept")

    def gained(self) -> Ratio:
        most = np.maximum(self.scores.dense, self.scores.base)
        return self.of(np.maximum(self.scores.recovered - most, 0.0), 1 - most, "every item had its full score")

    def against_control(self, no_control: str) -> tuple[Ratio, Ratio]:
        """The control, and the paired difference to it."""
        if self.scores.control is None:
            return Ratio(value=None, reason=no_control), Ratio(value=None, reason=no_control)
        lost, nothing = self.scores.lost, "nothing was lost"
        back, by_chance = self.scores.back(self.scores.recovered), self.scores.back(self.scores.control)
        return self.of(by_chance, lost, nothing), self.of(back - by_chance, lost, nothing, low=-1.0)

    def always(self, *, of_one_base: bool) -> Ratio:
        if not of_one_base or len(self.scores.seeds) < 2:
            return Ratio(value=None, reason="only for several seeds of a recovery of the same compressed model")
        back, lost = self.scores.back(self.scores.recovered), self.scores.lost
        return self.of(back.min(axis=0, keepdims=True), lost[:1], "nothing was lost")

    def change(self) -> Ratio:
        change = self.scores.recovered - self.scores.base
        if not change.size:
            return Ratio(value=None, reason=NO_ITEM)
        # Graded scores that changed by no more than this are not assumed to change by their whole range unseen.
        reach = float(np.abs(change).max()) or 1.0
        return ratio_of_sums(
            change, np.ones_like(change), self.scores.cluster, reach=(-reach, reach), alpha=self.alpha, nothing=""
        )


def _flow(scores: _Aligned) -> tuple[Flow, ...]:
    """The numbers of items by their history, each that occurs."""
    if scores.graded:
        names, dense = ("held", "fell"), np.ones_like(scores.base, dtype=bool)
        base, recovered = scores.base >= scores.dense, scores.recovered >= scores.dense
    else:
        names, dense = ("right", "wrong"), np.broadcast_to(scores.dense > 0, scores.base.shape)
        base, recovered = scores.base > 0, scores.recovered > 0
    flows = []
    for states in np.ndindex(2, 2, 2):
        which = (dense == (states[0] == 0)) & (base == (states[1] == 0)) & (recovered == (states[2] == 0))
        if which.any():
            of_dense, of_base, of_recovered = (names[state] for state in states)
            items = float(which.sum(axis=1).mean())
            flows.append(Flow(dense=of_dense, compressed=of_base, recovered=of_recovered, items=items))
    return tuple(flows)


def _direction(ratio: Ratio, alpha: float) -> ChangeOutcome:
    if ratio.p is None or ratio.value is None or ratio.p >= alpha:
        return "undecided"
    return "better" if ratio.value > 0 else "worse"


def _outcome(difference: Ratio, alpha: float, *, nothing_lost: bool) -> BackOutcome:
    if nothing_lost:
        return "nothing lost"
    if difference.value is None:
        return "no control"
    words: Mapping[ChangeOutcome, BackOutcome] = {"better": "brought back", "worse": "less than control"}
    return words.get(_direction(difference, alpha), "undecided")


def _notes(scores: _Aligned, *, graded: bool) -> tuple[str, ...]:
    notes = []
    if graded:
        notes.append("scores are not all right or wrong: shares are of score, and items count as lost if they fell")
    if len(scores.seeds) == 1:
        notes.append("one calibration seed: calibration variance is not in the intervals")
    if len(scores.seeds) == 2:
        notes.append("two calibration seeds: their variance is hardly known; three or more tell")
    if scores.unscored:
        notes.append(f"{scores.unscored} items have no score from one of the models and are left out")
    return tuple(notes)
