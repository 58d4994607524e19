"""What a person or a program sees while work goes on: a live view, plain lines, or events as JSON."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

if TYPE_CHECKING:  # scipy and pandas would slow every command down
    from llmkick.study.results.records import AnyComparison


# Off a terminal, a line says what is going on at most this often.
QUIET_SECONDS = 30.0
# What was done before a piece of work began is told within this time of its beginning.
WARM_UP_SECONDS = 0.5


@dataclass(kw_only=True)
class Pace:
    """How fast a run goes: steps a second of the piece at hand, seconds left of the whole plan.

    Cells that were complete from an earlier session cost no time and say nothing about those to come.
    """

    finished: int = 0
    total: int = 0
    title: str = ""
    steps: int = 0
    done: int = 0
    worked: int = 0  # cells that this session filled
    began: float = field(default_factory=lambda: time.monotonic())
    _first: tuple[float, int] = (0.0, 0)
    _busy: bool = False

    def stage(self, title: str, total: int) -> None:
        """A piece of work begins."""
        self.title, self.steps, self.done = title, total, 0
        self._first = (time.monotonic(), 0)

    def advance(self, done: int) -> None:
        """So many of its steps are done."""
        if time.monotonic() - self._first[0] < WARM_UP_SECONDS:
            self._first = (self._first[0], done)
        self.done, self._busy = done, True

    def cells(self, done: int, total: int) -> None:
        """So many cells of the plan are done."""
        if done and self._busy:
            self.worked += 1
        self.finished, self.total, self._busy, self.done = done, total, False, 0

    @property
    def rate(self) -> float | None:
        """Steps a second of the piece at hand, once there is anything to tell."""
        seconds, steps = time.monotonic() - self._first[0], self.done - self._first[1]
        return steps / seconds if steps > 0 and seconds > WARM_UP_SECONDS else None

    @property
    def share(self) -> float:
        """How much of the cell at hand is done."""
        return min(1.0, self.done / self.steps) if self.steps and self._busy else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the mean time that a cell took so far."""
        worked = self.worked + self.share
        if worked <= 0 or not self.total:
            return None
        return (time.monotonic() - self.began) / worked * max(0.0, self.total - self.finished - self.share)


class TerminalProgress:
    """Shows a run: on a terminal two bars and the verdicts as they fall; elsewhere plain lines."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._pace = Pace()
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._piece: TaskID | None = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._pace.began = time.monotonic()
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                _PaceColumn(self._pace), console=self._console, transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, title: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        self._pace.stage(title, total)
        if self._bars is not None:
            if self._piece is not None:
                self._bars.remove_task(self._piece)
            self._piece = self._bars.add_task(title, total=total, kind="piece")
        else:
            self._line()

    def advance(self, done: int) -> None:
        """So many steps of it are done."""
        self._pace.advance(done)
        if self._bars is not None and self._piece is not None:
            self._bars.update(self._piece, completed=done)
        else:
            self._line()

    def warn(self, text: str) -> None:
        """Something to know before the work starts."""
        if not self._quiet:
            self._console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def cells(self, done: int, total: int) -> None:
        """So many cells of the plan are done."""
        self._pace.cells(done, total)
        if self._bars is not None:
            if self._whole is None:
                self._whole = self._bars.add_task("whole study", total=total, kind="whole")
            self._bars.update(self._whole, completed=done, total=total)

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe was compared with the dense model on one task."""
        if not self._quiet:
            self._console.print(verdict_line(comparison), highlight=False, soft_wrap=True)

    def _line(self) -> None:
        if self._quiet or time.monotonic() - self._last_line < QUIET_SECONDS:
            return
        self._last_line = time.monotonic()
        pace = self._pace
        parts = [f"[{pace.finished}/{pace.total} cells] {pace.title}"]
        if pace.done:
            parts.append(f"{pace.done} of {pace.steps}")
        if pace.rate is not None:
            parts.append(f"{pace.rate:.3g}/s")
        if pace.seconds_left is not None:
            parts.append(f"{_clock(pace.seconds_left)} left")
        self._console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


class _PaceColumn(ProgressColumn):
    """Items a second beside the piece at hand; time gone by and time left beside the whole."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._of = pace

    def render(self, task: Task) -> Text:
        """One cell of the view."""
        if task.fields.get("kind") == "piece":
            return Text("" if self._of.rate is None else f"{self._of.rate:.3g}/s", style="cyan")
        left = self._of.seconds_left
        gone = _clock(time.monotonic() - self._of.began)
        return Text(f"{gone} gone, {'–' if left is None else _clock(left)} left", style="cyan")


class JsonProgress:
    """A run's events, one JSON object a line: warning, stage, progress, cells, verdict."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._pace = Pace()
        self._last = 0.0

    def emit(self, event: str, **facts: Any) -> None:
        """Write one event."""
        self._stream.write(json.dumps({"event": event, **facts}, ensure_ascii=True) + "\n")
        self._stream.flush()

    def stage(self, title: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        self._pace.stage(title, total)
        self.emit("stage", title=title, total=total)

    def advance(self, done: int) -> None:
        """So many steps of it are done; told once a second at most, and at the end."""
        self._pace.advance(done)
        if done >= self._pace.steps or time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            self.emit("progress", title=self._pace.title, done=done, total=self._pace.steps, rate=self._pace.rate)

    def cells(self, done: int, total: int) -> None:
        """So many cells of the plan are done."""
        self._pace.cells(done, total)
        self.emit("cells", done=done, total=total, seconds_left=self._pace.seconds_left)

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe was compared with the dense model on one task."""
        self.emit("verdict", comparison=asdict(comparison))

    def warn(self, text: str) -> None:
        """Something to know before the work starts."""
        self.emit("warning", text=text)


def verdict_line(comparison: AnyComparison) -> Text:
    """ "✗ wanda@0.5 on factoid_qa: not matching, 0.09, loss 84 % [70, 95]"."""
    from llmkick.report import formatting

    where = f"{comparison.recipe} on {comparison.task}"
    if comparison.kind == "perplexity":
        score = formatting.score(comparison.compressed, "perplexity")
        return Text(f"· {where}: {score}, {formatting.increase(comparison)}, {comparison.outcome}", style="dim")
    mark = formatting.mark(comparison.verdict)
    score, loss = formatting.score(comparison.compressed), formatting.loss(comparison)
    line = Text(f"{mark.symbol} ", style=mark.style)
    line.append(f"{where}: ")
    line.append(comparison.verdict, style=mark.style)
    line.append(f", {score}" + (f", loss {loss}" if loss.value != formatting.NOTHING else ""))
    return line


@contextlib.contextmanager
def spinner(console: Console, title: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner while something without steps goes on; nothing when not on a terminal."""
    if console.is_terminal and not quiet:
        with console.status(title):
            yield
    else:
        yield


def _clock(seconds: float) -> str:
    """75 → "1:15", 4,000 → "1:06:40"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
