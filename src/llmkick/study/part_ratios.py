"""What the parts of a run take against what was expected of them, and how many of their steps they need.

What a part takes corrects the expectation of those like it: the same part first, then the parts of its pool (the same
task, the same method), then those of pools beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# The weight of what is expected of a part against what was measured of its pool, as a share of one part.
PRIOR_WEIGHT = 0.05
# The weight of the pool against what was measured of the part itself, as a share of the part.
POOL_WEIGHT = 0.25
# The weight of the largest of spread shares against the shares of cells that ended, in cells.
SPREAD_WEIGHT = 0.25
# The share of the seconds of a part that its steps took at least, however long its start was expected to take.
LEAST_STEP_SHARE = 0.1
# The kinds of work that run a network: how much faster or slower than expected one is says something of the others.
NETWORK_KINDS = ("ask", "compress", "calibrate", "noise")
# The weight of the pool around against one neighbour, for what is expected of a kind, of a task or method, of a model.
# The compared models take what the dense one takes, but two methods have little in common.
ANCHORS = (1.0, 1.0, 0.02)
# The largest ratio that is believed of neighbours.
EXTREME = 1e3
# The weight of the expected share of a cell with early stopping against the shares of cells that ended, in cells.
SHARE_WEIGHT = 0.2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run: `steps` steps (items, blocks, tokens) of `cost` expected seconds each.

    pool: from the kind of work to the parts that take alike, such as ("ask", "factoid_qa", "dense"). stops_early: the
    part may end before its last step, after `stopping_share` of them as expected, `stopping_factor` times as many as
    others of its task. is_reference: with early stopping, the cell of the dense model, which is asked as far as the
    other cells of its task need it. model: parts of a model of unknown size share a factor of their own.
    chance: how likely it is that the part is done at all, if nothing of it was done yet. start: expected seconds before
    the first step.
    """

    key: str
    pool: tuple[str, ...]
    steps: float
    cost: float
    stops_early: bool = False
    stopping_share: float = 0.5
    stopping_factor: float = 1.0
    is_reference: bool = False
    model: str = ""
    chance: float = 1.0
    start: float = 0.0

    @property
    def expected_share(self) -> float:
        """The share of its steps after which the part is expected to end, before any part has ended."""
        return min(1.0, self.stopping_share * self.stopping_factor)


@dataclass(kw_only=True)
class PartState:
    """What was done of a part: steps in earlier sessions and in this one, and the seconds of this session."""

    part: Part
    earlier: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    is_begun: bool = False
    is_ended: bool = False

    @property
    def step_seconds(self) -> float:
        """The seconds of the steps of this session, without the start."""
        return max(self.seconds - self.part.start, LEAST_STEP_SHARE * self.seconds)

    @property
    def position(self) -> float:
        """The number of steps that are done, in this session and before."""
        return min(self.part.steps, self.earlier + self.done)


class _Evidence:
    """Expected and measured seconds of the steps that were done."""

    def __init__(self) -> None:
        self.expected = 0.0
        self.seconds = 0.0

    def add(self, expected: float, seconds: float) -> None:
        self.expected += expected
        self.seconds += seconds

    def ratio(self, prior: float, weight: float) -> float:
        """Measured against expected seconds; `prior` counts like `weight` expected seconds."""
        total = self.expected + weight
        return prior if total <= 0 else (self.seconds + prior * weight) / total


class Ratios:
    """Measured against expected seconds, by pool, and the shares of items that cells with early stopping ask."""

    def __init__(self, states: Sequence[PartState], *, is_rated: bool) -> None:
        self._anchors = ANCHORS if is_rated else (1e-3,) * len(ANCHORS)
        self._evidence: dict[tuple[str, ...], _Evidence] = defaultdict(_Evidence)
        self._models: dict[str, _Evidence] = defaultdict(_Evidence)
        sizes: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for state in states:
            part = state.part
            sizes[part.pool].append(part.steps * part.cost)
            if not part.model:
                self._evidence[part.pool].add(state.done * part.cost, state.step_seconds)
        self._weights = {pool: PRIOR_WEIGHT * sum(some) / len(some) for pool, some in sizes.items()}
        self._levels = _levels(self._evidence)
        self._ratios: dict[tuple[str, ...], float] = {}
        for state in states:
            if state.part.model:
                expected = state.done * state.part.cost * self.of_pool(state.part.pool)
                self._models[state.part.model].add(expected, state.step_seconds)
        self._shares = _Shares(states)

    def of_pool(self, pool: tuple[str, ...]) -> float:
        """The ratio of a pool: what was measured of it, against what others let expect."""
        if pool not in self._ratios:
            self._ratios[pool] = self._evidence[pool].ratio(math.exp(self._expected(pool)), self._weights[pool])
        return self._ratios[pool]

    def _expected(self, pool: tuple[str, ...]) -> float:
        """The logarithm of the ratio that is expected of a pool: the mean of its neighbours and of the pool around."""
        if not pool or (len(pool) == 1 and pool[0] not in NETWORK_KINDS):
            return 0.0
        around, anchor = self._expected(pool[:-1]), self._anchors[min(len(pool), len(self._anchors)) - 1]
        beside = [
            level
            for other, level in self._levels.items()
            if other[:-1] == pool[:-1] and other != pool and (len(pool) > 1 or _is_alike(other[0], pool[0]))
        ]
        return (anchor * around + sum(beside)) / (anchor + len(beside))

    def of_part(self, state: PartState) -> float:
        """The ratio of a part, at its own speed as far as it is done."""
        part = state.part
        size = part.steps * part.cost
        prior = self.of_pool(part.pool)
        if part.model:
            prior *= self._models[part.model].ratio(1.0, PRIOR_WEIGHT * size)
        own = _Evidence()
        own.add(state.done * part.cost, state.step_seconds)
        return own.ratio(prior, POOL_WEIGHT * size)

    def seconds_left(self, state: PartState) -> float:
        """The seconds that a part is expected to take from now on."""
        steps = max(0.0, self._shares.expected_steps(state) - state.position)
        chance = 1.0 if state.is_begun or state.position else state.part.chance
        start = 0.0 if state.seconds or state.is_ended else state.part.start
        return chance * (start + steps * state.part.cost * self.of_part(state))


def _is_alike(kind: str, other: str) -> bool:
    """Whether the speed of one kind of work says something of another's; single questions are asked like others."""
    return kind in NETWORK_KINDS and ("noise" not in (kind, other) or "ask" in (kind, other))


def _levels(evidence: Mapping[tuple[str, ...], _Evidence]) -> dict[tuple[str, ...], float]:
    """The logarithms of the measured ratios, by pool; a pool around others has the mean of theirs."""
    levels: dict[tuple[str, ...], float] = {
        pool: math.log(min(EXTREME, max(1 / EXTREME, some.seconds / some.expected)))
        for pool, some in evidence.items()
        if some.expected > 0
    }
    for depth in range(max(map(len, levels), default=0), 1, -1):
        inside: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for pool, level in levels.items():
            if len(pool) == depth:
                inside[pool[:-1]].append(level)
        levels |= {pool: sum(some) / len(some) for pool, some in inside.items()}
    return levels


def _summed(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    measured = expected = 0.0
    for share, expected_share in pairs:
        measured += share
        expected += expected_share
    return measured, expected


class _Shares:
    """The shares of their steps after which parts with early stopping ended, by task."""

    def __init__(self, states: Sequence[PartState]) -> None:
        self._ended: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)  # measured and expected
        self._open: dict[tuple[str, ...], list[PartState]] = defaultdict(list)
        for state in states:
            task = state.part.pool[:2]
            if state.part.stops_early and not state.part.is_reference and state.part.steps:
                if not state.is_ended:
                    self._open[task].append(state)
                    continue
                self._ended[task].append((state.position / state.part.steps, state.part.expected_share))
        weight = SHARE_WEIGHT * 0.5
        measured, expected = _summed(pair for ended in self._ended.values() for pair in ended)
        self._against_expected = (measured + weight) / (expected + weight)

    def of_part(self, part: Part) -> float:
        """The expected share of a cell that has not begun."""
        ended, weight = self._ended[part.pool[:2]], SHARE_WEIGHT * part.expected_share
        if not part.expected_share:
            return 0.0
        measured, expected = _summed(ended)
        likely = min(part.expected_share * self._against_expected, 1.0) / part.expected_share
        return min(1.0, part.expected_share * (measured + weight * likely) / (expected + weight))

    def expected_steps(self, state: PartState) -> float:
        """The number of steps after which a part is expected to end."""
        part = state.part
        if part.is_reference:
            return self._reference_steps(state)
        if state.is_ended:
            return state.position
        if not part.stops_early:
            return part.steps
        share = self.of_part(part)
        expected = share * part.steps
        # A cell that is about to ask more than expected may ask as many again.
        overdue = min(1.0, state.position / expected) ** 8 if expected > 0 else 1.0
        longer = max(expected, state.position)
        return longer + overdue * share * (part.steps - longer)

    def _reference_steps(self, state: PartState) -> float:
        """The dense model is asked as far as the longest of the cells that are compared with it."""
        task = state.part.pool[:2]
        count = len(self._open[task])
        if not count:
            return state.position if state.is_ended else state.part.steps
        expected = max(self.of_part(other.part) for other in self._open[task])
        # The largest of several shares, as if they were spread evenly around their mean, until cells have ended.
        spread = float(expected ** max(0.5, 2 / (count + 1)))
        ended = sum(map(len, self._ended.values()))
        share = (ended * expected + SPREAD_WEIGHT * spread) / (ended + SPREAD_WEIGHT)
        share = max(share, 0.0 if state.is_ended else state.part.stopping_share)
        return max(state.position, state.part.steps * share)
