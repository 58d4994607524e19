"""Observers of a study run: the observer protocol, a silent observer, and the combined progress of workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from llmkick.study.announcement import Announcement
from llmkick.study.forecast import Forecast
from llmkick.study.results.records import AnyComparison


class Observer(Protocol):
    """Receives the progress of a run, for example to draw a progress bar or to write a log."""

    def stage(self, title: str, total: int) -> None:
        """Handle the start of a stage with `total` steps."""
        ...

    def advance(self, done: int) -> None:
        """Handle progress: `done` steps of the stage are complete."""
        ...

    def cells(self, done: int, total: int) -> None:
        """Handle progress: `done` of `total` cells of the study are complete."""
        ...

    def verdict(self, comparison: AnyComparison) -> None:
        """Handle the comparison of a recipe with the dense model on one task."""
        ...

    def warn(self, text: str) -> None:
        """Handle a warning before the work starts."""
        ...


@runtime_checkable
class ForecastObserver(Protocol):
    """An observer that also shows how long the run will take."""

    def plan(self, forecast: Forecast, announcement: Announcement) -> None:
        """Handle the plan of the run before its work starts; the forecast is up to date at any later time."""
        ...


def show_plan(observer: Observer, forecast: Forecast, announcement: Announcement) -> None:
    """Show the plan of a run to an observer that can show it."""
    if isinstance(observer, ForecastObserver):
        observer.plan(forecast, announcement)


class Silent:
    """An observer that shows nothing."""

    def stage(self, title: str, total: int) -> None:
        """Ignore."""

    def advance(self, done: int) -> None:
        """Ignore."""

    def cells(self, done: int, total: int) -> None:
        """Ignore."""

    def verdict(self, comparison: AnyComparison) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""


@dataclass(frozen=True, kw_only=True)
class LockedObserver:
    """A thread-safe observer that forwards each call to `observer`."""

    observer: Observer
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def stage(self, title: str, total: int) -> None:
        """Handle the start of a stage with `total` steps."""
        with self._turn:
            self.observer.stage(title, total)

    def advance(self, done: int) -> None:
        """Handle progress: `done` steps of the stage are complete."""
        with self._turn:
            self.observer.advance(done)

    def cells(self, done: int, total: int) -> None:
        """Handle progress: `done` of `total` cells of the study are complete."""
        with self._turn:
            self.observer.cells(done, total)

    def verdict(self, comparison: AnyComparison) -> None:
        """Handle the interim comparison of a recipe whose answers to one task are complete."""
        with self._turn:
            self.observer.verdict(comparison)

    def warn(self, text: str) -> None:
        """Handle a warning before the work starts."""
        with self._turn:
            self.observer.warn(text)

    def plan(self, forecast: Forecast, announcement: Announcement) -> None:
        """Handle the plan of the run before its work starts."""
        with self._turn:
            show_plan(self.observer, forecast, announcement)


@dataclass(frozen=True, kw_only=True)
class StepObserver:
    """An observer that also calls `on_total` with the steps of a stage, and `on_step` with those that are finished."""

    observer: Observer
    on_step: Callable[[int], None]
    on_total: Callable[[int], None] = lambda total: None

    def stage(self, title: str, total: int) -> None:
        """Handle the start of a stage with `total` steps."""
        self.on_total(total)
        self.observer.stage(title, total)

    def advance(self, done: int) -> None:
        """Handle progress: `done` steps of the stage are complete."""
        self.on_step(done)
        self.observer.advance(done)

    def cells(self, done: int, total: int) -> None:
        """Handle progress: `done` of `total` cells of the study are complete."""
        self.observer.cells(done, total)

    def verdict(self, comparison: AnyComparison) -> None:
        """Handle the interim comparison of a recipe whose answers to one task are complete."""
        self.observer.verdict(comparison)

    def warn(self, text: str) -> None:
        """Handle a warning before the work starts."""
        self.observer.warn(text)


@dataclass(kw_only=True)
class CombinedProgress:
    """Reports to the observer of a run how many of `total` items all workers together have asked."""

    observer: Observer
    workers: int
    total: int
    _done: dict[str, list[int]] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def member(self, name: str) -> WorkerProgress:
        """Return the observer of one worker."""
        return WorkerProgress(combined=self, name=name)

    def begins(self, name: str, title: str) -> None:
        """Handle the start of a cell by a worker."""
        with self._turn:
            self._done.setdefault(name, []).append(0)
            self.observer.stage(f"{self.workers} workers, now {title}", self.total)
            self._tell()

    def advances(self, name: str, done: int) -> None:
        """Handle progress: a worker has asked `done` items of its cell."""
        with self._turn:
            self._done[name][-1] = done
            self._tell()

    def _tell(self) -> None:
        self.observer.advance(min(self.total, sum(map(sum, self._done.values()))))


@dataclass(frozen=True, kw_only=True)
class WorkerProgress:
    """The observer of one worker, which reports to the combined progress of all workers."""

    combined: CombinedProgress
    name: str

    def stage(self, title: str, total: int) -> None:
        """Handle the start of a cell."""
        self.combined.begins(self.name, title)

    def advance(self, done: int) -> None:
        """Handle progress: `done` items of the cell are complete."""
        self.combined.advances(self.name, done)

    def cells(self, done: int, total: int) -> None:
        """Ignore: the run reports this itself."""

    def verdict(self, comparison: AnyComparison) -> None:
        """Ignore: the run reports this itself."""

    def warn(self, text: str) -> None:
        """Ignore: the run reports this itself."""
