"""The search against brute force on every monotone grid, and on grids that are not."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkick.errors import ConfigError
from llmkick.statistics import Verdict, find_frontier
from llmkick.statistics.frontier import looks


def recorded(verdicts: dict[object, Verdict]) -> tuple[Callable[[object], Verdict], list[object]]:
    calls: list[object] = []

    def evaluate(level: object) -> Verdict:
        calls.append(level)
        return verdicts[level]

    return evaluate, calls


def monotone(matching: int, undecided: int, failing: int) -> dict[object, Verdict]:
    runs: list[tuple[Verdict, int]] = [("matching", matching), ("undecided", undecided), ("not matching", failing)]
    return dict(enumerate(verdict for verdict, count in runs for _ in range(count)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12), st.integers(0, 6), st.integers(0, 12))
def test_every_monotone_grid(matching: int, undecided: int, failing: int) -> None:
    verdicts = monotone(matching, undecided, failing)
    if not verdicts:
        return
    evaluate, calls = recorded(verdicts)
    result = find_frontier(list(verdicts), evaluate)
    assert result.strongest_matching == (matching - 1 if matching else None)
    assert result.weakest_not_matching == (matching + undecided if failing else None)
    assert result.violations == ()
    assert len(calls) == len(set(calls)) <= min(len(verdicts), 2 * len(verdicts).bit_length() + 2)
    assert list(result.order) == calls
    assert dict(result.verdicts) == {level: verdicts[level] for level in calls}


def test_large_grids_are_cheap() -> None:
    evaluate, calls = recorded(monotone(600, 3, 421))
    result = find_frontier(range(1024), evaluate)
    assert (result.strongest_matching, result.weakest_not_matching) == (599, 603)
    assert len(calls) <= 16


@pytest.mark.parametrize("levels", [(0.3, 0.4, 0.5, 0.6, 0.7), ("7:8", "6:8", "5:8", "4:8", "2:8"), (8, 6, 5, 4, 3)])
def test_any_kind_of_level(levels: tuple[object, ...]) -> None:
    outcome: list[Verdict] = ["matching", "matching", "undecided", "not matching", "not matching"]
    evaluate, _ = recorded(dict(zip(levels, outcome, strict=True)))
    result = find_frontier(levels, evaluate)
    assert (result.strongest_matching, result.weakest_not_matching) == (levels[1], levels[3])


def test_violations_are_shown() -> None:
    """Level 1 fails though level 2 matches: the neighbour of the level found is looked at, and reported."""
    evaluate, calls = recorded({0: "matching", 1: "not matching", 2: "matching", 3: "matching", 4: "not matching"})
    result = find_frontier(range(5), evaluate)
    assert result.strongest_matching == 3
    assert result.violations == ()
    assert 1 not in calls
    evaluate, calls = recorded({0: "matching", 1: "matching", 2: "not matching", 3: "matching", 4: "not matching"})
    result = find_frontier([1, 2, 3], lambda level: evaluate(level))
    assert (2, 3) in result.violations
    assert any("not monotone" in note for note in result.notes)


def test_only_levels_that_passed_a_second_look_are_reported() -> None:
    """A match that is not confirmed gives way to the next milder one that was judged, a failure to the next severer."""
    evaluate, calls = recorded(monotone(6, 0, 4))
    confirmed: list[object] = []
    refuted: list[object] = []

    def confirm(level: int) -> Verdict:
        confirmed.append(level)
        return "matching" if level <= 4 else "undecided"

    def refute(level: int) -> Verdict:
        refuted.append(level)
        return "not matching" if level >= 7 else "undecided"

    result = find_frontier(range(10), evaluate, confirm=confirm, refute=refute)
    assert (confirmed, refuted) == ([5, 4], [6, 7])
    assert (result.strongest_matching, result.weakest_not_matching) == (4, 7)
    assert dict(result.verdicts)[5] == dict(result.verdicts)[6] == "undecided"
    nothing = find_frontier(range(10), evaluate, confirm=lambda _: "undecided", refute=lambda _: "undecided")
    assert (nothing.strongest_matching, nothing.weakest_not_matching) == (None, None)
    assert set(confirmed + refuted) <= set(calls)


def test_a_match_on_the_look_at_a_failure_is_no_end_and_is_said() -> None:
    evaluate, _ = recorded(monotone(4, 0, 5))

    def refute(level: int) -> Verdict:
        return "matching" if level == 4 else "not matching"

    result = find_frontier(range(9), evaluate, confirm=lambda _: "matching", refute=refute)
    assert (result.strongest_matching, result.weakest_not_matching) == (3, 5)
    (note,) = result.notes
    assert note == "4: matching in one look and not confirmed, so not reported as matching"
    plain = find_frontier(range(9), evaluate, confirm=lambda _: "matching", refute=lambda _: "not matching")
    assert plain.notes == ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["matching", "undecided", "not matching"]), min_size=1, max_size=40))
@example([*["matching"] * 13, "undecided", *["matching"] * 4])  # both bisections find matches
def test_a_search_looks_as_often_as_its_alpha_is_divided(verdicts: list[Verdict]) -> None:
    """Whatever the verdicts are, no more levels than `looks` can end the interval on either side."""
    again: dict[str, list[object]] = {"confirm": [], "refute": []}

    def second(kind: str) -> Callable[[object], Verdict]:
        return lambda level: again[kind].append(level) or "undecided"

    evaluate, _ = recorded(dict(enumerate(verdicts)))
    find_frontier(range(len(verdicts)), evaluate, confirm=second("confirm"), refute=second("refute"))
    assert max(map(len, again.values())) <= looks(len(verdicts))


def test_ends_of_the_grid() -> None:
    severe = find_frontier([1, 2, 3], lambda level: "matching")
    assert (severe.strongest_matching, severe.weakest_not_matching) == (3, None)
    assert any("severest" in note for note in severe.notes)
    mild = find_frontier([1, 2, 3], lambda level: "not matching")
    assert (mild.strongest_matching, mild.weakest_not_matching) == (None, 1)
    assert any("mildest" in note for note in mild.notes)


def test_without_signal_one_level_is_enough() -> None:
    evaluate, calls = recorded(dict.fromkeys(range(9), "no signal"))
    result = find_frontier(range(9), evaluate)
    assert len(calls) == 1
    assert (result.strongest_matching, result.weakest_not_matching) == (None, None)
    assert any("no signal" in note for note in result.notes)


def test_incomplete_is_not_proof() -> None:
    verdicts: dict[object, Verdict] = {0: "matching", 1: "incomplete", 2: "not matching"}
    result = find_frontier([0, 1, 2], recorded(verdicts)[0])
    assert (result.strongest_matching, result.weakest_not_matching) == (0, 2)


@pytest.mark.parametrize("levels", [[], [0.5, 0.5]])
def test_bad_grids(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match="distinct levels"):
        find_frontier(levels, lambda level: "matching")
