"""Who watches a study run: a progress bar, a log, nobody."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

from llmkick.study.results.records import AnyComparison


class Observer(Protocol):
    """Whoever watches a run: a progress bar, a log, nobody."""

    def stage(self, title: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        ...

    def advance(self, done: int) -> None:
        """So many steps of it are done."""
        ...

    def cells(self, done: int, total: int) -> None:
        """So many cells of the whole plan are done."""
        ...

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe was compared with the dense model on one task."""
        ...

    def warn(self, text: str) -> None:
        """Something to know before the work starts."""
        ...


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
    """An observer that any thread may speak to."""

    observer: Observer
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def stage(self, title: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        with self._turn:
            self.observer.stage(title, total)

    def advance(self, done: int) -> None:
        """So many steps of it are done."""
        with self._turn:
            self.observer.advance(done)

    def cells(self, done: int, total: int) -> None:
        """So many cells of the whole plan are done."""
        with self._turn:
            self.observer.cells(done, total)

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe's answers to a task are all there, and this is what they say so far."""
        with self._turn:
            self.observer.verdict(comparison)

    def warn(self, text: str) -> None:
        """Something to know before the work starts."""
        with self._turn:
            self.observer.warn(text)


@dataclass(kw_only=True)
class CombinedProgress:
    """Tells the observer of a run how many of `total` items its workers have asked, in all cells together."""

    observer: Observer
    workers: int
    total: int
    _done: dict[str, list[int]] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def member(self, name: str) -> WorkerProgress:
        """The observer of one worker."""
        return WorkerProgress(combined=self, name=name)

    def begins(self, name: str, title: str) -> None:
        """A worker begins a cell."""
        with self._turn:
            self._done.setdefault(name, []).append(0)
            self.observer.stage(f"{self.workers} workers, now {title}", self.total)
            self._tell()

    def advances(self, name: str, done: int) -> None:
        """So much of a worker's cell is done."""
        with self._turn:
            self._done[name][-1] = done
            self._tell()

    def _tell(self) -> None:
        self.observer.advance(min(self.total, sum(map(sum, self._done.values()))))


@dataclass(frozen=True, kw_only=True)
class WorkerProgress:
    """The observer of one worker among several, whose progress is shown together."""

    combined: CombinedProgress
    name: str

    def stage(self, title: str, total: int) -> None:
        """A cell begins."""
        self.combined.begins(self.name, title)

    def advance(self, done: int) -> None:
        """So many of its items are done."""
        self.combined.advances(self.name, done)

    def cells(self, done: int, total: int) -> None:
        """The run tells that itself."""

    def verdict(self, comparison: AnyComparison) -> None:
        """The run tells that itself."""

    def warn(self, text: str) -> None:
        """The run tells that itself."""
