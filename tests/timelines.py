"""Timelines of runs: what a forecast was told and when, recorded from a run and told again to a new forecast.

`PYTHONPATH=src:tests python tests/timelines.py NAME STUDY.toml FOLDER [--wall]` records a study in seconds of the
processor; with --wall, for a machine that does nothing else, in those of the clock.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkick.study.expected_stop import StopSettings
from llmkick.study.forecast import Forecast
from llmkick.study.parts import Part

# What is stated for less than this many seconds is not seen.
SEEN_SECONDS = 0.02
TOLD = ("see_accuracy", "see_loss", "see_rise", "resize", "skip", "skip_share", "begin", "work", "end")
FOLDER = Path(__file__).parent / "study" / "timelines"


@dataclass(frozen=True)
class Timeline:
    """The parts of a run, what its forecast was told: (second, method, arguments), and when the run was over."""

    parts: list[Part]
    events: list[tuple[float, str, list[Any]]]
    seconds: float
    is_rated: bool = True


@dataclass(frozen=True)
class Stated:
    """The seconds left that a forecast stated at a time, and the share of the run's work that was done then."""

    at: float
    left: float | None
    truth: float
    first_cell_done: bool
    share: float


@contextmanager
def recorded() -> Iterator[list[Timeline]]:
    """Record the forecasts that are made in the `with` block; a timeline is added at its end."""
    plain = {name: getattr(Forecast, name) for name in ("__init__", *TOLD)}
    lines: list[tuple[Forecast, list[Part], list[tuple[float, str, list[Any]]], float]] = []
    done: list[Timeline] = []

    def init(self: Forecast, parts: Any, **options: Any) -> None:
        parts = list(parts)
        plain["__init__"](self, parts, **options)
        lines.append((self, parts, [], time.monotonic()))

    def told(name: str) -> Any:
        def tell(self: Forecast, *arguments: Any) -> None:
            plain[name](self, *arguments)
            for forecast, _, events, started in lines:
                if forecast is self:
                    events.append((round(time.monotonic() - started, 3), name, list(arguments)))

        return tell

    try:
        Forecast.__init__ = init  # type: ignore[method-assign]
        for name in TOLD:
            setattr(Forecast, name, told(name))
        yield done
    finally:
        for name, method in plain.items():
            setattr(Forecast, name, method)
    for forecast, parts, events, started in lines:
        if parts:
            done.append(Timeline(parts, events, round(time.monotonic() - started, 3), forecast.is_rated))


def save(timeline: Timeline, path: Path) -> None:
    """Write a timeline; a line an event, with the index of the part in place of its key."""
    index = {part.key: place for place, part in enumerate(timeline.parts)}
    events = [[at, name, index.get(key, key), *rest] for at, name, (key, *rest) in timeline.events]
    events = [[round(value, 4) if isinstance(value, float) else value for value in event] for event in events]
    parts = [asdict(part) for part in timeline.parts]
    rows = ",\n".join(json.dumps(event) for event in events)
    pools = ",\n".join(json.dumps(part) for part in parts)
    rated = json.dumps(timeline.is_rated)
    path.write_text(
        f'{{"seconds": {timeline.seconds}, "is_rated": {rated}, "parts": [\n{pools}\n], "events": [\n{rows}\n]}}\n',
        encoding="utf-8",
    )


def load(path: Path) -> Timeline:
    """Read a timeline."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    parts = [_part(**part) for part in facts["parts"]]
    events = [
        (at, name, [parts[key].key if isinstance(key, int) else key, *rest]) for at, name, key, *rest in facts["events"]
    ]
    return Timeline(parts, events, facts["seconds"], facts["is_rated"])


def _part(*, pool: list[str], stop: dict[str, float] | None = None, **options: Any) -> Part:
    return Part(pool=tuple(pool), stop=None if stop is None else StopSettings(**stop), **options)


def stated(timeline: Timeline) -> list[Stated]:
    """What a forecast says after each event of a timeline, and halfway to the next."""
    now = [0.0]
    forecast = Forecast(timeline.parts, is_rated=timeline.is_rated, clock=lambda: now[0])
    cells = {part.key for part in timeline.parts if part.pool[0] == "ask"}
    first, started, answers = False, None, []
    ends = [*(event[0] for event in timeline.events[1:]), timeline.seconds]
    for (at, name, arguments), later in zip(timeline.events, ends, strict=True):
        now[0] = at
        getattr(forecast, name)(*arguments)
        if name in ("begin", "work") and started is None:
            started = at
        first = first or (started is not None and name == "end" and arguments[0] in cells)
        for moment in (at, (at + later) / 2):
            now[0] = moment
            if started is not None and later - at >= SEEN_SECONDS:
                share = (moment - started) / (timeline.seconds - started)
                answers.append(Stated(moment, forecast.seconds_left, timeline.seconds - moment, first, share))
    return answers


def worst_factor(answers: list[Stated], *, ignored_seconds: float = 0.0) -> float:
    """The largest factor between the seconds left as stated and in truth, where more than some seconds are left."""
    worst = 1.0
    for answer in answers:
        if answer.truth > ignored_seconds:
            assert answer.left is not None
            worst = max(worst, max(answer.left, 1e-9) / answer.truth, answer.truth / max(answer.left, 1e-9))
    return worst


if __name__ == "__main__":
    from llmkick.study.run import run_study

    if "--wall" not in sys.argv:  # what else the machine does is no part of the timeline
        time.perf_counter = time.monotonic = time.process_time

    with recorded() as timelines:
        run_study(Path(sys.argv[2]), out=Path(sys.argv[3]))
    FOLDER.mkdir(exist_ok=True)
    save(timelines[0], FOLDER / f"{sys.argv[1]}.json")
    answers = stated(timelines[0])
    for answer in answers[:: max(1, len(answers) // 40)]:
        factor = (answer.left or 0.0) / max(answer.truth, 1e-3)
        print(f"{answer.at:8.1f} s {answer.share:5.0%} {answer.left:8.1f} of {answer.truth:8.1f} left: {factor:.2f}")
