"""The forecast of a run: the seconds that the work left will take, at the speeds measured so far.

The work of a run is a list of parts: a cell, a compression, a calibration text, the judging. A part has an expected
number of seconds, from tokens and parameters. What the parts take corrects the expectation of those like them: the
same part first, then the parts of its pool (the same task, the same method), then all.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

# The weight of what is expected of a part against what was measured of its pool, as a share of one part.
PRIOR_WEIGHT = 0.05
# The weight of the pool against what was measured of the part itself, as a share of the part.
POOL_WEIGHT = 0.25
# The kinds of work that run a network: how much faster or slower than expected one is says something of the others.
NETWORK_KINDS = ("ask", "compress", "calibrate")
# The expected share of the items that a cell with early stopping asks, until cells have ended.
STOPPING_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run: `steps` steps (items, blocks, tokens) of `cost` expected seconds each.

    pool: from the kind of work to the parts that take alike, such as ("ask", "factoid_qa", "dense"). stops_early: the
    part may end before its last step. is_reference: with early stopping, the cell of the dense model, which is asked
    as far as the other cells of its task need it. model: parts of a model of unknown size share a factor of their own.
    chance: how likely it is that the part is done at all, if nothing of it was done yet.
    """

    key: str
    pool: tuple[str, ...]
    steps: float
    cost: float
    stops_early: bool = False
    is_reference: bool = False
    model: str = ""
    chance: float = 1.0


@dataclass(kw_only=True)
class _State:
    """What was done of a part: steps in earlier sessions and in this one, and the seconds of this session."""

    part: Part
    earlier: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    is_begun: bool = False
    is_ended: bool = False

    @property
    def position(self) -> float:
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


class Forecast:
    """The work of a run and its speeds. Thread-safe.

    is_rated: the costs of the parts are seconds of this machine, so there is a forecast before any part was measured.
    workers: how many parts are worked at together. clock: seconds of any origin.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        *,
        is_rated: bool = True,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_rated = is_rated
        self.workers = workers
        self._clock = clock
        self._lock = threading.RLock()
        self._states: dict[str, _State] = {}
        self._active: list[str] = []
        self._began: float | None = None
        self._last = 0.0
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Add a part to the work."""
        with self._lock:
            self._states[part.key] = _State(part=part)

    def resize(self, key: str, steps: float) -> None:
        """Change the number of steps of a part."""
        with self._lock:
            if key in self._states:
                self._states[key].part = replace(self._states[key].part, steps=steps)

    def skip(self, key: str, steps: float) -> None:
        """Record that an earlier session did steps of a part: they take no time, and say nothing about the speed."""
        with self._lock:
            if key in self._states:
                self._states[key].earlier = steps

    def skip_share(self, key: str, share: float) -> None:
        """Record that this share of a part was done in an earlier session."""
        with self._lock:
            if key in self._states:
                self._states[key].earlier = share * self._states[key].part.steps

    def begin(self, key: str) -> None:
        """Record that a worker begins with a part, or goes on with it."""
        with self._lock:
            self._tick()
            if key in self._states:
                self._states[key].is_begun, self._states[key].is_ended = True, False
                self._active = [*self._active, key][-self.workers :]

    def work(self, key: str, steps: float, seconds: float) -> None:
        """Record that `steps` steps of a part took this time, which ends now."""
        with self._lock:
            now = self._clock()
            if self._began is None:
                self._began = now - seconds
            self._last = now
            state = self._states.get(key)
            if state is not None:
                state.done += steps
                state.seconds += seconds

    def end(self, key: str) -> None:
        """Record that nothing is left of a part, whether or not all its steps were done."""
        with self._lock:
            if key in self._states:
                self._states[key].is_ended = True
            self._active = [active for active in self._active if active != key]

    @contextmanager
    def working(self, key: str) -> Iterator[Callable[[int], None]]:
        """Work at a part in the `with` block; yields the function to call with the number of finished steps."""
        self.begin(key)
        with self._lock:
            before = self._states[key].position if key in self._states else 0.0
        timer = _StepTimer(self, key, before, self._clock)
        yield timer.advance
        timer.finish()
        self.end(key)

    def _tick(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now
        self._last = now

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the work is done; None until there is a rate."""
        with self._lock:
            states = list(self._states.values())
            if not self.is_rated and not any(state.seconds and state.done for state in states):
                return None
            ratios = _Ratios(states, is_rated=self.is_rated)
            left = {state.part.key: ratios.seconds_left(state) for state in states}
            pace = self._wall_per_worked(states, sum(left.values()))
            total = sum(left.values()) * pace
            if self._began is None or not self._active:
                return total
            current = sum(left.get(key, 0.0) for key in set(self._active)) * pace
            return max(0.0, total - _consumed(self._clock() - self._last, current))

    def _wall_per_worked(self, states: Sequence[_State], left: float) -> float:
        """Seconds on the clock per second of work: above 1 for what no part counts, below 1 with several workers."""
        worked = sum(state.seconds for state in states)
        wall = 0.0 if self._began is None else self._last - self._began
        weight = PRIOR_WEIGHT * (worked + left)
        expected = 1 / self.workers
        return expected if worked + weight <= 0 else (wall + expected * weight) / (worked + weight)


def _consumed(elapsed: float, expected: float) -> float:
    """How much of the expected seconds of a step has passed: never all of it while the step is not done."""
    half = expected / 2
    if elapsed <= half:
        return elapsed
    return half + half * (1 - math.exp(-(elapsed - half) / half)) if half > 0 else 0.0


class _StepTimer:
    """Tells a forecast the steps of one part, each with the time since the one before."""

    def __init__(self, forecast: Forecast, key: str, done: float, clock: Callable[[], float]) -> None:
        self._forecast, self._key, self._clock = forecast, key, clock
        self._done, self._since = done, clock()

    def advance(self, done: int) -> None:
        if done > self._done:
            now = self._clock()
            self._forecast.work(self._key, done - self._done, now - self._since)
            self._done, self._since = done, now

    def finish(self) -> None:
        """Count the time after the last step too."""
        self._forecast.work(self._key, 0, self._clock() - self._since)


class _Ratios:
    """Measured against expected seconds, by pool, and the shares of items that cells with early stopping ask."""

    def __init__(self, states: Sequence[_State], *, is_rated: bool) -> None:
        self._is_rated = is_rated
        self._evidence: dict[tuple[str, ...], _Evidence] = defaultdict(_Evidence)
        self._models: dict[str, _Evidence] = defaultdict(_Evidence)
        self._sizes: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for state in states:
            part, expected = state.part, state.done * state.part.cost
            for depth in range(len(part.pool) + 1):
                self._sizes[part.pool[:depth]].append(part.steps * part.cost)
                if not part.model and (depth or part.pool[0] in NETWORK_KINDS):
                    self._evidence[part.pool[:depth]].add(expected, state.seconds)
        self._weights = {pool: PRIOR_WEIGHT * sum(sizes) / len(sizes) for pool, sizes in self._sizes.items()}
        self._known: dict[tuple[str, ...], float] = {}
        for state in states:
            if state.part.model:
                expected = state.done * state.part.cost * self.of_pool(state.part.pool)
                self._models[state.part.model].add(expected, state.seconds)
        self._shares = _Shares(states)

    def of_pool(self, pool: tuple[str, ...]) -> float:
        """The ratio of a pool; without evidence of its own, that of the pool around it."""
        if pool not in self._known:
            self._known[pool] = self._evidence[pool].ratio(self._around(pool), self._weights[pool])
        return self._known[pool]

    def _around(self, pool: tuple[str, ...]) -> float:
        """The ratio that is expected of a pool without evidence of its own."""
        if not pool:
            return 1.0
        around = self.of_pool(pool[:-1])
        if len(pool) > 1 or not self._is_rated:
            return around
        # Half of what one kind of work takes beyond the expectation is the machine's; half is that kind's own.
        return math.sqrt(around) if pool[0] in NETWORK_KINDS else 1.0

    def of_part(self, state: _State) -> float:
        """The ratio of a part, at its own speed as far as it is done."""
        part = state.part
        size = part.steps * part.cost
        prior = self.of_pool(part.pool)
        if part.model:
            prior *= self._models[part.model].ratio(1.0, PRIOR_WEIGHT * size)
        own = _Evidence()
        own.add(state.done * part.cost, state.seconds)
        return own.ratio(prior, POOL_WEIGHT * size)

    def seconds_left(self, state: _State) -> float:
        steps = max(0.0, self._shares.expected_steps(state) - state.position)
        chance = 1.0 if state.is_begun or state.position else state.part.chance
        return chance * steps * state.part.cost * self.of_part(state)


class _Shares:
    """The shares of their steps after which parts with early stopping ended, by task."""

    def __init__(self, states: Sequence[_State]) -> None:
        self._ended: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self._open: dict[tuple[str, ...], list[_State]] = defaultdict(list)
        for state in states:
            task = state.part.pool[:2]
            if state.part.stops_early and not state.part.is_reference and state.part.steps:
                if state.is_ended:
                    self._ended[task].append(state.position / state.part.steps)
                else:
                    self._open[task].append(state)
        every = [share for shares in self._ended.values() for share in shares]
        self._overall = (sum(every) + STOPPING_SHARE) / (len(every) + 1)

    def of_task(self, task: tuple[str, ...]) -> float:
        """The expected share of a cell of a task that has not begun."""
        shares = self._ended[task]
        return (sum(shares) + self._overall) / (len(shares) + 1)

    def expected_steps(self, state: _State) -> float:
        """The number of steps after which a part is expected to end."""
        part = state.part
        if part.is_reference:
            return self._reference_steps(state)
        if state.is_ended:
            return state.position
        if not part.stops_early:
            return part.steps
        return state.position + (part.steps - state.position) * self.of_task(part.pool[:2])

    def _reference_steps(self, state: _State) -> float:
        """The dense model is asked as far as the longest of the cells that are compared with it."""
        task = state.part.pool[:2]
        count = len(self._open[task])
        if not count:
            return state.position if state.is_ended else state.part.steps * self.of_task(task)
        # The largest of several shares, as if they were spread evenly around their mean.
        share = self.of_task(task) ** (2 / (count + 1))
        return max(state.position, state.part.steps * share)
