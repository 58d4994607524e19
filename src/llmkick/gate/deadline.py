"""The wall time of a gate, shared by its tasks: each may use an equal part of what is left when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from llmkick.study.progress import Observer
from llmkick.study.results.records import AnyComparison


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


@dataclass(frozen=True, kw_only=True)
class WatchedObserver:
    """Forwards each call to `observer`, and looks at the deadline after every batch."""

    observer: Observer
    deadline: Deadline

    def stage(self, title: str, total: int) -> None:
        """Handle the start of a stage with `total` steps."""
        self.observer.stage(title, total)

    def advance(self, done: int) -> None:
        """Handle progress. Raises TimeSpentError if the time is over."""
        self.observer.advance(done)
        self.deadline.check()

    def cells(self, done: int, total: int) -> None:
        """Handle progress: `done` of `total` cells are complete."""
        self.observer.cells(done, total)

    def verdict(self, comparison: AnyComparison) -> None:
        """Handle an interim comparison."""
        self.observer.verdict(comparison)

    def warn(self, text: str) -> None:
        """Handle a warning before the work starts."""
        self.observer.warn(text)
