"""The interval of the difference between two studies: how often it misses, and when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from scipy import stats

from llmkick.report.run_folder import Run
from llmkick.report.several.studies import _interval

DRAWS, ALPHA = 150, 0.05
# So many draws of an error rate of 5 % show more than this in one of a thousand tests.
MOST = float(stats.binom.ppf(0.999, DRAWS, ALPHA)) / DRAWS
BySeed = Mapping[int | None, Mapping[str, float | None]]


def run(stop: str = "never") -> Run:
    return cast(Run, SimpleNamespace(result=SimpleNamespace(study=SimpleNamespace(alpha=ALPHA, facts={"stop": stop}))))


def by_item(scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> dict[str, float | None]:
    return {f"item-{k}": float(score) for k, score in enumerate(scores)}


def interval(
    ours: BySeed, theirs: BySeed, clusters: Mapping[str, str] | None = None, stop: str = "never"
) -> tuple[tuple[float, float] | None, str]:
    items = list(next(iter(ours.values())))
    return _interval((ours, theirs), items, clusters or {}, run(), run(stop))


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.05), (0.05, 0.5), (0.6, 0.6)])
def test_it_misses_the_difference_in_few_draws(before: float, after: float) -> None:
    """The dense score of the first study is drawn, too; it may be 0."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(DRAWS):
        ours, theirs = ({None: by_item((rng.random(100) < share).astype(float))} for share in (before, after))
        found, _ = interval(ours, theirs)
        assert found is not None
        missed += not found[0] <= after - before <= found[1]
    assert missed / DRAWS <= MOST


def test_calibration_seeds_are_part_of_the_error() -> None:
    """Two studies of a recipe whose score depends on the seed: no difference is shown more often than alpha allows."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(DRAWS):
        studies = [
            {seed: by_item((rng.random(300) < 0.5 + 0.04 * rng.standard_normal()).astype(float)) for seed in range(3)}
            for _ in range(2)
        ]
        found, _ = interval(studies[0], studies[1])
        assert found is not None
        missed += not found[0] <= 0 <= found[1]
    assert missed / DRAWS <= MOST


def test_a_few_clusters_say_less_than_as_many_items() -> None:
    rng = np.random.default_rng(2)
    lost = np.repeat(rng.random(10) < 0.4, 10)
    ours, theirs = {None: by_item(np.ones(100))}, {None: by_item(1.0 - lost)}
    alone, _ = interval(ours, theirs)
    joined, _ = interval(ours, theirs, {f"item-{k}": str(k // 10) for k in range(100)})
    assert alone is not None
    assert joined is not None
    assert joined[1] - joined[0] > 2 * (alone[1] - alone[0])


def test_what_cannot_be_known_has_no_interval() -> None:
    ours = {0: by_item(np.ones(50)), 1: by_item(np.ones(50))}
    theirs = {0: by_item(np.zeros(50))}
    assert interval(ours, theirs) == (None, "other calibration seeds")
    assert interval(theirs, theirs, stop="decided") == (None, 'what was asked depends on verdicts (stop = "decided")')
    assert interval({0: {"item-0": 1.0}}, {0: {"item-0": 0.0}}) == (None, "fewer than two items")
