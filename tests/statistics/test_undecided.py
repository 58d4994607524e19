"""Why a verdict is undecided: the true reason, and a number of further items that is right."""

from __future__ import annotations

import numpy as np
import pytest

from llmkick.statistics import Comparison, Undecided, compare, compare_stopped, order_items


def counts(right: int, lost: int, gained: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    table = [right, lost, gained, wrong]
    return np.repeat([1.0, 1.0, 0.0, 0.0], table), np.repeat([1.0, 0.0, 1.0, 0.0], table)


def reason(found: Comparison) -> Undecided:
    assert found.verdict == "undecided"
    assert found.undecided is not None
    return found.undecided


class TestReasons:
    def test_few_items(self) -> None:
        found = compare(*counts(65, 5, 5, 25))
        assert reason(found).reason == "few items"
        (note,) = [note for note in found.notes if note.startswith("undecided")]
        assert note.startswith("undecided because 100 items are few for this loss: about ")
        assert note.endswith(" more items would decide this in 80% of runs")

    def test_few_clusters(self) -> None:
        """The same items would decide if they were drawn on their own."""
        rng = np.random.default_rng(0)
        lost = np.repeat([0.0, 0.0, 0.02, 0.0, 0.06, 0.0], 100)
        dense = (rng.random(600) < 0.8) * 1.0
        compressed = np.where(rng.random(600) < lost, 0.0, dense)
        alone, stories = compare(dense, compressed), compare(dense, compressed, clusters=np.arange(600) // 100)
        assert (alone.verdict, alone.undecided) == ("matching", None)
        assert reason(stories).reason == "few clusters"
        assert any("the 600 items come from 6 clusters only" in note for note in stories.notes)

    def test_few_seeds(self) -> None:
        rng = np.random.default_rng(1)
        rows = np.array([(rng.random(3000) > share) * 1.0 for share in (0.0, 0.0, 0.1)])
        found = compare(np.ones(3000), rows)
        assert compare(np.ones(3000), rows.mean(axis=0)).verdict == "matching"
        assert reason(found).reason == "few seeds"
        assert any("no realistic number of further items" in note for note in found.notes)

    def test_near_the_margin(self) -> None:
        found = compare(*counts(900, 100, 51, 449))
        assert found.relative_drop == pytest.approx(0.049)
        assert reason(found) == Undecided(reason="near the margin", more_items=None)

    def test_a_decided_verdict_has_none(self) -> None:
        for table in ((700, 40, 40, 220), (500, 200, 30, 270)):
            assert compare(*counts(*table)).undecided is None
        assert compare([1.0, 0.0], [0.0, 0.0], clusters=["a", "a"]).undecided is None
        assert compare(*counts(65, 5, 5, 25), explain=False).undecided is None

    def test_a_stopped_comparison_says_it_too(self) -> None:
        dense, compressed = counts(65, 5, 5, 25)
        ids = [f"q{number}" for number in range(100)]
        named = [dict(zip(ids, scores.tolist(), strict=True)) for scores in (dense, compressed)]
        found = compare_stopped(order_items(ids), *named)
        assert reason(found).reason == "few items"
        plain = compare(dense, compressed).undecided
        assert plain is not None
        assert plain.more_items is not None
        # Its last test has less of alpha.
        assert found.undecided is not None
        assert (found.undecided.more_items or 0) > plain.more_items


@pytest.mark.parametrize(
    ("table", "size", "verdict"),
    [((65, 5, 5, 25), 1, "matching"), ((130, 16, 4, 50), 1, "not matching"), ((130, 10, 10, 50), 5, "matching")],
)
@pytest.mark.parametrize("draws", [100, pytest.param(250, marks=pytest.mark.slow)])
def test_the_number_of_further_items_decides_in_about_80_percent(
    table: tuple[int, int, int, int], size: int, verdict: str, draws: int
) -> None:
    """Studies of that size, drawn from a population that is what was observed."""
    dense, compressed = counts(*table)
    items = dense.size
    clusters = np.random.default_rng(5).permutation(items) // size
    more = reason(compare(dense, compressed, clusters=clusters)).more_items
    assert more is not None
    rng, decided = np.random.default_rng(6), 0
    members = [np.flatnonzero(clusters == cluster) for cluster in range(items // size)]
    for _ in range(draws):
        picked = rng.integers(len(members), size=round((items + more) / size))
        chosen = np.concatenate([members[k] for k in picked])
        labels = np.repeat(np.arange(picked.size), size)
        again = compare(dense[chosen], compressed[chosen], clusters=labels, same_model=False, explain=False)
        decided += again.verdict == verdict
    assert decided / draws == pytest.approx(0.8, abs=0.1)


def test_more_items_are_needed_the_nearer_the_margin() -> None:
    numbers = [reason(compare(*counts(1000 - k, k, 40, 460))).more_items for k in (75, 78, 81)]
    assert None not in numbers
    assert numbers == sorted(numbers)  # type: ignore[type-var]
