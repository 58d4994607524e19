"""Who watches a study run: a progress bar, a log, nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


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

    def verdict(self, comparison: Mapping[str, Any]) -> None:
        """A recipe was compared with the dense model on one task; an entry as in results.json's `comparisons`."""
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

    def verdict(self, comparison: Mapping[str, Any]) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""
