"""The gain of a model from worked examples in the prompt, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from llmkick.claims.answers import cluster_codes
from llmkick.claims.evidence import Estimate, Evidence, NotAskedError, Statement, evidence_of
from llmkick.claims.runs import ClaimRun
from llmkick.statistics.mean import MeanTest, UnobservedMoments, mean_test
from llmkick.statistics.verdict import where_rejected
from llmkick.study.results.records import TaskSummary

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Scores that rose, (seeds, items), beside what the dense model has above chance, (items,)."""

    rise: Floats
    above_chance: Floats
    clusters: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    chance: float

    def test(self, share: float) -> MeanTest:
        """The test of a gain of this share of the dense score above chance: p_above small proves a larger one."""
        # What no item showed may happen all the same: that a right answer becomes wrong, and a wrong one right.
        lost, gained = -1 - share * (1 - self.chance), 1 + share * self.chance
        unobserved = UnobservedMoments(lost, lost**2), UnobservedMoments(gained, gained**2)
        return mean_test(self.rise - share * self.above_chance, self.clusters, unobserved)

    @property
    def value(self) -> float | None:
        """The gain as a share of the dense score above chance; None for a dense score that is not above it."""
        above = float(self.above_chance.mean())
        return float(self.rise.mean()) / above if above > 0 else None

    def interval(self, alpha: float, margin: float) -> tuple[float, float] | None:
        """The pair of one-sided bounds at the level 1 − alpha: the gains that the test leaves open (Fieller 1954)."""
        value = self.value
        if value is None:
            return None
        test = cache(self.test)
        furthest = 1 / float(self.above_chance.mean())
        low = where_rejected(lambda r: test(r).p_above, value, alpha, limit=-furthest, margin=margin)
        high = where_rejected(lambda r: test(r).p_below, value, alpha, limit=furthest, margin=margin)
        return (-furthest if low is None else low, furthest if high is None else high)


def gains_more_than_margin(
    before: Sequence[pd.DataFrame], after: Sequence[pd.DataFrame], dense: pd.DataFrame, *, task: TaskSummary,
    run: ClaimRun, text: str,
) -> Evidence:  # fmt: skip
    """That a model's score rises by more than the margin, as a share of what the dense model has above chance.

    `before` and `after` are its answers under two prompts, a frame for each seed, `dense` the dense model's before.
    A missing score counts as the worst for each direction.
    """
    if len(before) != len(after):
        raise NotAskedError(f"{run.name} has not the same seeds under both prompts")
    table = pd.concat([frame["score"] for frame in (dense, *before, *after)], axis=1).astype(float)
    known = table.dropna()
    if len(known) < 2 or any(set(frame.index) != set(dense.index) for frame in (*before, *after)):
        raise NotAskedError(f"{run.name} has not the same items under both prompts")

    def gain(scores: pd.DataFrame) -> Gain:
        # The subjects of multiple choice are fixed: the items are the units, unless the task says otherwise.
        units = pd.Series(scores.index) if task.groups == "strata" else dense.loc[scores.index, "cluster"]
        values, seeds = scores.to_numpy().T, len(before)
        return Gain(
            rise=values[1 + seeds :] - values[1 : 1 + seeds],
            above_chance=values[0] - task.chance_level,
            clusters=cluster_codes(units, run),
            chance=task.chance_level,
        )

    alpha, margin, seen = run.result.study.alpha, run.result.study.margin, gain(known)
    worst, best = (gain(_filled(table, 1 + len(before), earlier, later)) for earlier, later in ((1.0, 0.0), (0.0, 1.0)))
    if lacking := len(table) - len(known):
        text += f" ({lacking} of {len(table)} questions have no score)"
    statement = Statement(
        text=text,
        run=run.name,
        quantity="gain, of the dense score",
        estimate=Estimate(value=seen.value, interval=seen.interval(alpha, margin), alpha=alpha),
        p_for=worst.test(margin).p_above,
        p_against=best.test(margin).p_below,
    )
    return evidence_of(statement)


def _filled(table: pd.DataFrame, first: int, earlier: float, later: float) -> pd.DataFrame:
    """The scores with those that are missing: in the columns before `first` one value, in the others another."""
    return pd.concat([table.iloc[:, :first].fillna(earlier), table.iloc[:, first:].fillna(later)], axis=1)
