"""The strongest compression that still matches: a bisection over levels ordered from mild to severe."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmkick.errors import ConfigError
from llmkick.statistics.verdict import Verdict

Level = TypeVar("Level", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Frontier(Generic[Level]):
    """The interval of levels in which a method stops matching."""

    strongest_matching: Level | None  # None: no level is known to match
    weakest_not_matching: Level | None  # None: no level is known not to match
    verdicts: tuple[tuple[Level, Verdict], ...]  # every evaluated level, mild → severe
    order: tuple[Level, ...]  # the same levels in the order of evaluation
    violations: tuple[tuple[Level, Level], ...]  # (milder level that does not match, severer level that does)
    notes: tuple[str, ...]


def looks(levels: int) -> int:
    """The largest number of levels at which a search of this many can end up wrongly, in either direction.

    A bisection looks at ⌈log₂(n + 1)⌉ levels, and one neighbour is looked at beside it. Each look at a level beyond the
    frontier is another opportunity to err. A confirmation at alpha divided by this number, on the items of the search,
    therefore errs in at most alpha, also where the loss is flat at the margin (benchmarks/statistics.py).
    """
    return math.ceil(math.log2(levels + 1)) + 1


def find_frontier(
    levels: Sequence[Level],
    evaluate: Callable[[Level], Verdict],
    *,
    confirm: Callable[[Level], Verdict] | None = None,
    refute: Callable[[Level], Verdict] | None = None,
) -> Frontier[Level]:
    """Bisect for the strongest level that matches and for the weakest that does not.

    Levels go from mild to severe: sparsities, N:M patterns, bits downwards. Each is evaluated at most once. `confirm`
    evaluates the strongest matching level a second time, at a lower alpha (see `looks`), on all items, or with other
    calibration seeds; if its verdict is not "matching", the next milder match is confirmed, up to `looks` of them.
    `refute` does the same for the weakest level that does not match. With them, only levels that passed are reported as
    ends of the interval; a level that `refute` calls matching is no end, because it was not confirmed, and a note says
    so. Loss is assumed to grow with the level. To check that, the neighbours outside the interval are evaluated, and
    levels that contradict it are returned as violations. Raises ConfigError for no levels or repeated ones.
    """
    if not levels or len(set(levels)) < len(levels):
        raise ConfigError(f"give distinct levels, at least one, from mild to severe; got {list(levels)}")
    verdicts: dict[int, Verdict] = {}

    def verdict(index: int) -> Verdict:
        if index not in verdicts:
            verdicts[index] = evaluate(levels[index])
        return verdicts[index]

    def ends_at(again: Callable[[Level], Verdict] | None, wanted: Verdict, indices: Sequence[int]) -> int | None:
        """The first index whose verdict is as wanted, also on the second look; alpha is divided for so many of them."""
        for index in indices if again is None else indices[: looks(len(levels))]:
            if again is not None:
                verdicts[index] = again(levels[index])
            if verdicts[index] == wanted:
                return index
        return None

    # A missing signal is a property of the dense model: no other level needs to be compressed.
    if verdict((len(levels) - 1) // 2) == "no signal":
        return _frontier(levels, verdicts, None, None)
    matching = _last(len(levels), lambda index: verdict(index) == "matching")
    failing = _last(len(levels), lambda index: verdict(index) != "not matching") + 1
    for neighbour in (matching - 1, failing + 1):
        if 0 <= neighbour < len(levels):
            verdict(neighbour)
    candidates = [index for index in sorted(verdicts, reverse=True) if verdicts[index] == "matching"]
    strongest = ends_at(confirm, "matching", candidates)
    failures = [index for index in sorted(verdicts) if verdicts[index] == "not matching"]
    weakest = ends_at(refute, "not matching", failures)
    return _frontier(levels, verdicts, strongest, weakest)


def _last(count: int, holds: Callable[[int], bool]) -> int:
    """The last index for which `holds` is true, if it is true up to some index and false after it; −1 if never true."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _frontier(
    levels: Sequence[Level], verdicts: dict[int, Verdict], strongest: int | None, weakest: int | None
) -> Frontier[Level]:
    """The frontier with these ends, and what the verdicts of the evaluated levels, by index, say about it."""
    ordered = sorted(verdicts.items())
    matching = [index for index, verdict in ordered if verdict == "matching"]
    failing = [index for index, verdict in ordered if verdict == "not matching"]
    violations = tuple((levels[i], levels[j]) for i in failing for j in matching if i < j)
    notes = []
    if violations:
        notes.append("severity is not monotone here: a severer level matches where a milder one does not")
    unconfirmed = [levels[index] for index in matching if index > (-1 if strongest is None else strongest)]
    if unconfirmed:
        which = ", ".join(map(str, unconfirmed))
        notes.append(f"{which}: matching in one look and not confirmed, so not reported as matching")
    if all(verdict == "no signal" for verdict in verdicts.values()):
        notes.append("the dense model shows no signal on this task: there is no frontier to find")
    if strongest == len(levels) - 1:
        notes.append("even the severest level matches: extend the grid")
    if weakest == 0:
        notes.append("even the mildest level does not match: extend the grid")
    return Frontier(
        strongest_matching=None if strongest is None else levels[strongest],
        weakest_not_matching=None if weakest is None else levels[weakest],
        verdicts=tuple((levels[index], verdict) for index, verdict in ordered),
        order=tuple(levels[index] for index in verdicts),
        violations=violations,
        notes=tuple(notes),
    )
