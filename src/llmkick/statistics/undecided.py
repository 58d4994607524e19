"""Why a verdict is undecided, and how many more items would decide it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from llmkick.statistics.power import POWER
from llmkick.statistics.simulated_test import SimulatedTest
from llmkick.statistics.verdict import PairedScores, loss_test

Reason = Literal["few items", "few clusters", "few seeds", "near the margin"]

# An estimate whose decision needs this many times the items is near the margin.
NEAR_MARGIN = 20
# Draws of a simulated study, fewer for large ones; the standard error of a share of 80 % over 100 draws is 4 points.
_DRAWS, _DRAWN_ITEMS = 100, 400_000


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """Why scores do not decide, and the number of further items that would, with a probability of 80 %."""

    reason: Reason
    more_items: int | None  # None: no realistic number

    def sentence(self, scores: PairedScores) -> str:
        """The reason and the remedy, for a note."""
        items, units = scores.dense.size, scores.clusters
        causes: dict[Reason, str] = {
            "few items": f"undecided because {items:,} items are few for this loss",
            "few clusters": f"undecided because the {items:,} items come from {units} clusters only",
            "few seeds": f"undecided because {len(scores.compressed)} calibration seeds differ",
            "near the margin": "undecided because the loss is near the margin",
        }
        if self.more_items is None:
            remedy = "no realistic number of further items would decide this"
        else:
            remedy = f"about {_rounded(self.more_items):,} more items would decide this in {POWER:.0%} of runs"
        return f"{causes[self.reason]}: {remedy}"


def explain_undecided(scores: PairedScores, *, margin: float, alpha: float, chance: float = 0.0) -> Undecided:
    """Why the test at the margin decides nothing, if the loss observed is the true one.

    Further items are simulated: clusters are drawn from those observed and go through the test of the verdict. Seeds
    stay as they are.
    """
    needed = _needed_clusters(scores, margin=margin, alpha=alpha, chance=chance)
    items = scores.dense.size
    if needed is None or needed > NEAR_MARGIN * scores.clusters:
        seeds = len(scores.compressed) > 1 and _decided(_one_seed(scores), margin, alpha, chance)
        return Undecided(reason="few seeds" if seeds else "near the margin", more_items=None)
    more = max(1, math.ceil((needed / scores.clusters - 1) * items))
    clustered = scores.clusters < items
    alone = replace(scores, cluster=np.arange(items))
    few = clustered and _decided(alone, margin, alpha, chance)
    return Undecided(reason="few clusters" if few else "few items", more_items=more)


def _one_seed(scores: PairedScores) -> PairedScores:
    return replace(scores, compressed=scores.compressed.mean(axis=0, keepdims=True))


def _decided(scores: PairedScores, margin: float, alpha: float, chance: float) -> bool:
    test = loss_test(scores, margin, chance)
    return min(test.p_above, test.p_below) < alpha


def _needed_clusters(scores: PairedScores, *, margin: float, alpha: float, chance: float) -> int | None:
    """Number of clusters like those observed that decide in 80 % of draws; None if it is beyond all measure."""
    test = loss_test(scores, margin, chance)
    most = 10 * NEAR_MARGIN * scores.clusters
    if not test.mean or not test.variance:
        return None
    # The normal approximation first, then corrected by what the simulation says at that number.
    wanted = special.ndtri(1 - alpha) + special.ndtri(POWER)
    if test.seed_variance and test.critical(alpha, test.df) * 2 > abs(test.mean) and test.seed_variance > test.variance:
        return None
    count = math.ceil(scores.clusters * test.variance * (wanted / test.mean) ** 2)
    if count > 2 * NEAR_MARGIN * scores.clusters:
        return None
    for _ in range(4):
        count = max(2, min(count, most))
        power = _simulated(scores, count, above=test.mean > 0, margin=margin, alpha=alpha, chance=chance)
        if abs(power - POWER) < 0.04:
            return count
        if count == most:
            return None
        reached = special.ndtri(min(max(power, 0.02), 0.98)) + special.ndtri(1 - alpha)
        count = math.ceil(count * min(4.0, (wanted / max(reached, 0.3)) ** 2))
    return count


def _simulated(scores: PairedScores, count: int, *, above: bool, margin: float, alpha: float, chance: float) -> float:
    """Share of draws of `count` clusters with replacement that decide as the mean says."""
    rng = np.random.default_rng(0)
    order = np.argsort(scores.cluster, kind="stable")
    sizes = np.bincount(scores.cluster)
    first = np.cumsum(sizes) - sizes
    draws = min(_DRAWS, max(40, _DRAWN_ITEMS // max(1, int(count * sizes.mean()))))
    test = SimulatedTest(margin=margin, alpha=alpha, chance=chance)
    shown = test.matches if above else test.fails
    decided = 0
    for _ in range(draws):
        picked = rng.integers(sizes.size, size=count)
        lengths = sizes[picked]
        starts = np.repeat(first[picked] - (np.cumsum(lengths) - lengths), lengths)
        items = order[starts + np.arange(int(lengths.sum()))]
        drawn = replace(
            scores,
            dense=scores.dense[items],
            compressed=scores.compressed[:, items],
            cluster=np.repeat(np.arange(count), lengths),
        )
        decided += shown(drawn)
    return decided / draws


def _rounded(count: int) -> int:
    """Two significant digits: the number is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return int(round(count, -digits))
