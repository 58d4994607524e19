"""The forecast of a run: the seconds that the work left will take, at the speeds measured so far.

The work of a run is a list of parts: a cell, a compression, a calibration text, the judging. A part has an expected
number of seconds, from tokens and parameters, which `part_ratios` corrects by what was measured.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from llmkick.study.part_ratios import PRIOR_WEIGHT, Ratios
from llmkick.study.parts import Part, PartState


class Forecast:
    """The work of a run and its speeds. Thread-safe.

    is_rated: the costs of the parts are seconds of this machine, so there is a forecast before any part was measured.
    workers: how many parts are worked at together. clock: seconds of any origin, by default those of `time.monotonic`.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        *,
        is_rated: bool = True,
        workers: int = 1,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.is_rated = is_rated
        self.workers = workers
        self._clock = clock or time.monotonic
        self._lock = threading.RLock()
        self._states: dict[str, PartState] = {}
        self._active: list[str] = []
        self._began: float | None = None
        self._last = 0.0
        self._left: dict[str, float] | None = None  # seconds of each part; None after anything has changed
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Add a part to the work."""
        with self._lock:
            self._left = None
            self._states[part.key] = PartState(part=part)

    def resize(self, key: str, steps: float) -> None:
        """Change the number of steps of a part."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].part = replace(self._states[key].part, steps=steps)

    def see_accuracy(self, key: str, accuracy: float, has_signal: bool) -> None:
        """Record the score of the dense model so far, and whether it is, or will be, above chance."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].accuracy, self._states[key].has_signal = accuracy, has_signal

    def see_loss(self, key: str, loss: float, error: float) -> None:
        """Record the relative loss of a cell so far, with its standard error."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].loss, self._states[key].loss_error = loss, error

    def see_rise(self, key: str, rise: float) -> None:
        """Record by how much the logarithm of perplexity is above that of the dense model in a cell."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].rise = rise

    def skip(self, key: str, steps: float) -> None:
        """Record that an earlier session did steps of a part: they take no time, and say nothing about the speed."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].earlier = steps

    def skip_share(self, key: str, share: float) -> None:
        """Record that this share of a part was done in an earlier session."""
        with self._lock:
            self._left = None
            if key in self._states:
                self._states[key].earlier = share * self._states[key].part.steps

    def begin(self, key: str) -> None:
        """Record that a worker begins with a part, or goes on with it."""
        with self._lock:
            self._left = None
            self._tick()
            if key in self._states:
                self._states[key].is_begun, self._states[key].is_ended = True, False
                self._active = [*self._active, key][-self.workers :]

    def work(self, key: str, steps: float, seconds: float) -> None:
        """Record that `steps` steps of a part took this time, which ends now."""
        with self._lock:
            self._left = None
            now = self._clock()
            if self._began is None:
                self._began = now - seconds
            self._last = now
            state = self._states.get(key)
            if state is not None:
                state.add(steps, seconds)

    def end(self, key: str) -> None:
        """Record that nothing is left of a part, whether or not all its steps were done."""
        with self._lock:
            self._left = None
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
        self.end(key)
        timer.finish()

    def _tick(self) -> None:
        now = self._clock()
        if self._began is None:
            self._began = now
        self._last = now

    def left(self, kind: str) -> tuple[int, int]:
        """The parts of a kind of work that have not ended, and their steps that are left at most."""
        with self._lock:
            states = [s for s in self._states.values() if s.part.pool[0] == kind and not s.is_ended]
            return len(states), round(sum(state.part.steps - state.position for state in states))

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the work is done; None until there is a rate."""
        with self._lock:
            states = list(self._states.values())
            if not self.is_rated and not any(state.seconds and state.done for state in states):
                return None
            if self._left is None:
                ratios = Ratios(states, is_rated=self.is_rated)
                self._left = {state.part.key: ratios.seconds_left(state) for state in states}
            left = self._left
            pace = self._wall_per_worked(states, sum(left.values()))
            total = sum(left.values()) * pace
            if self._began is None or not self._active:
                return total
            current = sum(left.get(key, 0.0) for key in set(self._active)) * pace
            return max(0.0, total - _consumed(self._clock() - self._last, current))

    def _wall_per_worked(self, states: Sequence[PartState], left: float) -> float:
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
