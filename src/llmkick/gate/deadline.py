"""The wall time of a gate, shared by its tasks: each may use an equal part of what is left when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


class TimeSpentError(Exception):
    """The wall time of a task is used up."""


@dataclass(kw_only=True)
class Deadline:
    """Counts from its creation; `seconds` None is no limit. `now` is a clock in seconds."""

    seconds: float | None
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._ends = None if self.seconds is None else self.now() + self.seconds
        self._turn_ends = self._ends

    def begin_turn(self, turns: int) -> None:
        """Begin one of the `turns` that are left. Raises TimeSpentError if no time is left."""
        self._turn_ends = self._ends
        self.check()
        if self._ends is not None:
            self._turn_ends = self.now() + (self._ends - self.now()) / turns

    def check(self) -> None:
        """Raise TimeSpentError if the time of this turn is over."""
        if self._turn_ends is not None and self.now() >= self._turn_ends:
            raise TimeSpentError
