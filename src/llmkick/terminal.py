"""What a person sees while work goes on: bars with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Off a terminal, a line says what is going on at most this often.
QUIET_SECONDS = 30.0


class Watcher:
    """Shows a run's stages; on a terminal as two bars: the whole plan, and the piece at hand."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._piece: TaskID | None = None
        self._finished, self._total = 0, 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, title: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        if self._bars is not None:
            if self._piece is not None:
                self._bars.remove_task(self._piece)
            self._piece = self._bars.add_task(title, total=total)
        elif not self._quiet and time.monotonic() - self._last_line >= QUIET_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"[{self._finished}/{self._total} cells] {title}", markup=False, highlight=False)

    def advance(self, done: int) -> None:
        """So many steps of it are done."""
        if self._bars is not None and self._piece is not None:
            self._bars.update(self._piece, completed=done)

    def cells(self, done: int, total: int) -> None:
        """So many cells of the plan are done."""
        self._finished, self._total = done, total
        if self._bars is not None:
            if self._whole is None:
                self._whole = self._bars.add_task("whole study", total=total)
            self._bars.update(self._whole, completed=done, total=total)


@contextlib.contextmanager
def working(console: Console, title: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner while something without steps goes on; nothing when not on a terminal."""
    if console.is_terminal and not quiet:
        with console.status(title):
            yield
    else:
        yield
