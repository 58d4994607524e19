"""Readers of the published data sets, one per data set: files in any official layout → items and notes."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.tasks.task import Item


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The items of a data set in file order, and notes on the data for a reader of the scores."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def counted(count: int, what: str) -> tuple[str, ...]:
    """A note with its count; empty if the count is 0."""
    return (f"{count} {what}",) if count else ()
