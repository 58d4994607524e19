"""What the parts of a run take against what was expected of them.

What a part takes corrects the expectation of those like it: the same part first, then the parts of its pool (the same
task, the same method), then those of pools beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from llmkick.study.expected_ends import ExpectedEnds
from llmkick.study.parts import PartState

# The weight of what is expected of a part against what was measured of its pool, as a share of one part.
PRIOR_WEIGHT = 0.05
# The weight of the pool against what was measured of the part itself, as a share of the part.
POOL_WEIGHT = 0.25
# The kinds of work that run a network: how much faster or slower than expected one is says something of the others.
NETWORK_KINDS = ("ask", "compress", "calibrate", "noise")
# The weight of the pool around against one neighbour, for what is expected of a kind, of a task or method, of a model.
# The compared models take what the dense one takes, but two methods have little in common.
ANCHORS = (1.0, 1.0, 0.02)
# The largest ratio that is believed of neighbours.
EXTREME = 1e3


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
    """Measured against expected seconds, by pool, and the steps that parts are expected to need."""

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
        self._ends = ExpectedEnds(states)

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
        end = self._ends.steps(state)
        steps = max(0.0, end - state.position)
        chance = 1.0 if state.is_begun or state.position else state.part.chance
        return chance * (state.start_left(end) + steps * state.part.cost * self.of_part(state))


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
