"""Progress of a run, for a person or a program: a live view, plain lines, or events as JSON."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from llmkick.cli.heartbeat import Heartbeat
from llmkick.cli.pace import Pace

if TYPE_CHECKING:  # scipy and pandas would slow every command down
    from llmkick.study.announcement import Announcement, Words
    from llmkick.study.forecast import Forecast
    from llmkick.study.results.records import AnyComparison

# Outside a terminal, a line tells the progress this often, and never less than every 30 seconds.
QUIET_SECONDS = 25.0
# JSON tells the progress of a stage at most this often.
JSON_SECONDS = 1.0


class TerminalProgress:
    """Shows a run to a person: two bars and the verdicts as they come on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False, reports: bool = False, words: Words = str) -> None:
        self._console = console
        self._words = words  # those of advice
        self._reports = reports  # whether a report is written after the run
        self._quiet = quiet
        self._pace = Pace()
        self._bars: Progress | None = None
        self._whole: TaskID | None = None
        self._stage: TaskID | None = None
        self._last_line = 0.0
        self._turn = threading.RLock()  # the heartbeat prints too
        self._heartbeat = Heartbeat(self._beat)

    def __enter__(self) -> Self:
        self._pace.began = time.monotonic()
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                _PaceColumn(self._pace), console=self._console, transient=True,
            )  # fmt: skip
            self._bars.start()
        elif not self._quiet:
            self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._heartbeat.stop()

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._pace.stage(title, total)
        if self._bars is not None:
            if self._stage is not None:
                self._bars.remove_task(self._stage)
            self._stage = self._bars.add_task(title, total=total, kind="stage")
        else:
            self._line()

    def advance(self, done: int) -> None:
        """This many steps of the stage are done."""
        self._pace.advance(done)
        if self._bars is not None and self._stage is not None:
            self._bars.update(self._stage, completed=done)
        else:
            self._line()

    def warn(self, text: str) -> None:
        """A warning before the work starts."""
        self._print(f"warning: {text}", style="yellow")

    def plan(self, forecast: Forecast, announcement: Announcement) -> None:
        """The plan of the run, before its work starts."""
        self._pace.plan(forecast, cells=announcement.cells, reports=self._reports)
        for line in [] if announcement.is_empty else announcement.lines(self._words):
            self._print(line)

    def cells(self, done: int, total: int) -> None:
        """This many cells of the plan are done."""
        self._pace.cells(done, total)
        if self._bars is not None:
            if self._whole is None:
                self._whole = self._bars.add_task("whole study", total=total, kind="whole")
            self._bars.update(self._whole, completed=done, total=total)

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe was compared with the dense model on one task."""
        self._print(verdict_line(comparison))

    def _print(self, text: str | Text, *, style: str | None = None) -> None:
        if not self._quiet:
            with self._turn:
                self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _beat(self) -> float:
        """Print a line if one is due, and return the seconds until the next is."""
        if not self._pace.title:
            return QUIET_SECONDS
        self._line()
        return max(0.1, QUIET_SECONDS - (time.monotonic() - self._last_line))

    def _line(self) -> None:
        with self._turn:
            if self._quiet or time.monotonic() - self._last_line < QUIET_SECONDS:
                return
            self._last_line = time.monotonic()
            self._print(self._progress_line())

    def _progress_line(self) -> str:
        pace = self._pace
        parts = [f"[{pace.finished}/{pace.total} cells] {pace.title}"]
        if pace.done:
            parts.append(f"{pace.done} of {pace.steps}")
        if pace.rate is not None:
            parts.append(f"{pace.rate:.3g}/s")
        if pace.seconds_left is not None:
            parts.append(f"{_clock(pace.seconds_left)} left")
        return ", ".join(parts)


class _PaceColumn(ProgressColumn):
    """The column beside the bars: steps per second of the stage, time elapsed and left of the whole run."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        """The text beside a bar."""
        if task.fields.get("kind") == "stage":
            return Text("" if self._pace.rate is None else f"{self._pace.rate:.3g}/s", style="cyan")
        left = self._pace.seconds_left
        gone = _clock(time.monotonic() - self._pace.began)
        return Text(f"{gone} gone, {'–' if left is None else _clock(left)} left", style="cyan")


class JsonProgress:
    """Writes the events of a run, one JSON object per line: warning, plan, stage, progress, cells, verdict.

    As a context manager it also tells the progress while a step takes long.
    """

    def __init__(self, stream: IO[str], *, reports: bool = False) -> None:
        self._stream = stream
        self._reports = reports  # whether a report is written after the run
        self._pace = Pace()
        self._last = 0.0
        self._turn = threading.RLock()  # the heartbeat writes too
        self._heartbeat = Heartbeat(self._beat)

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()

    def emit(self, event: str, **facts: object) -> None:
        """Write one event."""
        with self._turn:
            self._stream.write(json.dumps({"event": event, **facts}, ensure_ascii=True) + "\n")
            self._stream.flush()

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._pace.stage(title, total)
        self.emit("stage", title=title, total=total)

    def advance(self, done: int) -> None:
        """This many steps of the stage are done; written at most once a second, and at the end."""
        self._pace.advance(done)
        if done >= self._pace.steps or time.monotonic() - self._last >= JSON_SECONDS:
            self._progress()

    def _progress(self) -> None:
        with self._turn:
            self._last, pace = time.monotonic(), self._pace
            facts = {"title": pace.title, "done": pace.done, "total": pace.steps, "rate": pace.rate}
            self.emit("progress", **facts, seconds_left=pace.seconds_left)

    def _beat(self) -> float:
        """Tell the progress if that is due, and return the seconds until the next time."""
        if not self._pace.title:
            return QUIET_SECONDS
        if time.monotonic() - self._last >= QUIET_SECONDS:
            self._progress()
        return max(0.1, QUIET_SECONDS - (time.monotonic() - self._last))

    def cells(self, done: int, total: int) -> None:
        """This many cells of the plan are done."""
        self._pace.cells(done, total)
        self.emit("cells", done=done, total=total, seconds_left=self._pace.seconds_left)

    def verdict(self, comparison: AnyComparison) -> None:
        """A recipe was compared with the dense model on one task."""
        self.emit("verdict", comparison=asdict(comparison))

    def warn(self, text: str) -> None:
        """A warning before the work starts."""
        self.emit("warning", text=text)

    def plan(self, forecast: Forecast, announcement: Announcement) -> None:
        """The plan of the run, before its work starts."""
        self._pace.plan(forecast, cells=announcement.cells, reports=self._reports)
        if not announcement.is_empty:
            self.emit("plan", **asdict(announcement))


def verdict_line(comparison: AnyComparison) -> Text:
    """A verdict in a line, such as "✗ wanda@0.5 on factoid_qa: not matching, 0.09, loss of 84 % [70, 95]"."""
    from llmkick.report import formatting

    label = f"{comparison.recipe} on {comparison.task}"
    if comparison.kind == "perplexity":
        score = formatting.score(comparison.compressed, "perplexity")
        return Text(f"· {label}: {score}, {formatting.increase(comparison)}, {comparison.outcome}", style="dim")
    mark = formatting.mark(comparison.verdict)
    score, loss = formatting.score(comparison.compressed), formatting.loss_sentence(comparison)
    line = Text(f"{mark.symbol} ", style=mark.style)
    line.append(f"{label}: ")
    line.append(comparison.verdict, style=mark.style)
    line.append(f", {score}" + (f", {loss}" if loss else ""))
    return line


@contextlib.contextmanager
def spinner(console: Console, title: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner during work without steps, if the console is a terminal."""
    if console.is_terminal and not quiet:
        with console.status(title):
            yield
    else:
        yield


def _clock(seconds: float) -> str:
    """Seconds as a clock: 75 → "1:15", 4,000 → "1:06:40"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
