"""Readers of the published data sets, one per data set: files in any official layout → items and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.errors import DataError
from llmkick.tasks.metrics import normalise
from llmkick.tasks.task import Item


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The items of a data set in file order, and notes on the data for a reader of the scores.

    Raises DataError without items.
    """

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            left_out = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise DataError(f"the data has nothing to ask{left_out}: its files are empty, or every row is left out")


def answerable(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items with a reference that an answer can match, and a note with the number of the others, if any."""
    kept = tuple(item for item in items if any(map(normalise, item.references)))
    lost = len(items) - len(kept)
    return kept, counted(lost, "questions whose answers are articles or punctuation only are left out")


def counted(count: int, what: str) -> tuple[str, ...]:
    """A note with its count; empty if the count is 0."""
    return (f"{count} {what}",) if count else ()
