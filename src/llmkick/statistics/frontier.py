"""The strongest compression that still matches: a bisection over levels ordered from mild to severe."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmkick.errors import ConfigError
from llmkick.statistics.verdict import Verdict

Level = TypeVar("Level", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Frontier(Generic[Level]):
    """Between which levels a method stops matching; the answer is an interval, not a point."""

    strongest_matching: Level | None  # None: no level was proven to match
    weakest_not_matching: Level | None  # None: no level was proven not to match
    verdicts: tuple[tuple[Level, Verdict], ...]  # every level evaluated, mild → severe
    order: tuple[Level, ...]  # the same in the order of evaluation
    violations: tuple[tuple[Level, Level], ...]  # (milder that does not match, severer that does)
    notes: tuple[str, ...]


def find_frontier(
    levels: Sequence[Level],
    evaluate: Callable[[Level], Verdict],
    *,
    confirm: Callable[[Level], Verdict] | None = None,
) -> Frontier[Level]:
    """Bisect for the strongest level that matches and for the weakest that does not.

    Levels go from mild to severe: sparsities, N:M patterns, bits downwards. Each is evaluated once at most.
    `confirm` is a second look at the level found, e.g. all items instead of an early stop, or other
    calibration seeds; as long as it does not say "matching" the search steps to the next milder match.
    Severity is assumed to be monotone; the neighbours outside the interval are evaluated to check, and
    levels that contradict it are returned as violations.

    A search is several tests at alpha each: two bisections and two neighbours, so at most 2 · ⌈log₂(n + 1)⌉ + 2 of n
    levels. Confirming on fresh items keeps the error rate of the strongest level at alpha; without a confirmation,
    divide alpha by that number.
    """
    if not levels or len(set(levels)) < len(levels):
        raise ConfigError(f"give distinct levels, at least one, from mild to severe; got {list(levels)}")
    found: dict[int, Verdict] = {}

    def verdict(index: int) -> Verdict:
        if index not in found:
            found[index] = evaluate(levels[index])
        return found[index]

    # A missing signal is the dense model's: one level tells, and no other needs to be compressed.
    if verdict((len(levels) - 1) // 2) == "no signal":
        return _frontier(levels, found)
    matching = _last(len(levels), lambda index: verdict(index) == "matching")
    failing = _last(len(levels), lambda index: verdict(index) != "not matching") + 1
    for neighbour in (matching - 1, failing + 1):
        if 0 <= neighbour < len(levels):
            verdict(neighbour)
    if confirm is not None:
        for index in range(matching, -1, -1):
            if verdict(index) == "matching":
                found[index] = confirm(levels[index])
                if found[index] == "matching":
                    break
    return _frontier(levels, found)


def _last(count: int, holds: Callable[[int], bool]) -> int:
    """The last index for which it holds, if it holds up to some index and not after; −1 if never."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _frontier(levels: Sequence[Level], found: dict[int, Verdict]) -> Frontier[Level]:
    ordered = sorted(found.items())
    matching = [index for index, verdict in ordered if verdict == "matching"]
    failing = [index for index, verdict in ordered if verdict == "not matching"]
    violations = tuple((levels[i], levels[j]) for i in failing for j in matching if i < j)
    notes = []
    if violations:
        notes.append("severity is not monotone here: a severer level matches where a milder one does not")
    if all(verdict == "no signal" for verdict in found.values()):
        notes.append("the dense model shows no signal on this task: there is no frontier to find")
    if found.get(len(levels) - 1) == "matching":
        notes.append("even the severest level matches: extend the grid")
    if found.get(0) == "not matching":
        notes.append("even the mildest level does not match: extend the grid")
    return Frontier(
        strongest_matching=levels[matching[-1]] if matching else None,
        weakest_not_matching=levels[failing[0]] if failing else None,
        verdicts=tuple((levels[index], verdict) for index, verdict in ordered),
        order=tuple(levels[index] for index in found),
        violations=violations,
        notes=tuple(notes),
    )
