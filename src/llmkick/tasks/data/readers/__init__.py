"""One reader a published data set: its files in every official layout → items, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.tasks.task import Item


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The items of a data set in the order of its files, and what a reader of the scores should know about them."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def counted(count: int, what: str) -> tuple[str, ...]:
    """A note with its count, or nothing for none."""
    return (f"{count} {what}",) if count else ()
