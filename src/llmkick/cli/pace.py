"""The speed of a run: steps per second of its stage, and the seconds that are left of all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # scipy and pandas would slow every command down
    from llmkick.study.forecast import Forecast

# Steps reported within this time of the start of a stage were done before it, and do not count for its rate.
WARM_UP_SECONDS = 0.5
# Expected seconds to write the report of a run.
REPORT_SECONDS, REPORT_SECONDS_A_CELL = 1.0, 0.02


@dataclass(kw_only=True)
class Pace:
    """The speed of a run: steps per second of the current stage, and seconds left of the whole plan.

    The seconds left are those of the forecast, once the run has one, and otherwise those of a mean cell. Cells that an
    earlier run completed take no time and say nothing about the time of those to come.
    """

    finished: int = 0
    total: int = 0
    title: str = ""
    steps: int = 0
    done: int = 0
    worked: int = 0  # cells that this run completed
    forecast: Forecast | None = None
    began: float = field(default_factory=lambda: time.monotonic())
    _first: tuple[float, int] = (0.0, 0)
    _busy: bool = False

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self.title, self.steps, self.done = title, total, 0
        self._first = (time.monotonic(), 0)

    def advance(self, done: int) -> None:
        """This many steps of the stage are done."""
        if time.monotonic() - self._first[0] < WARM_UP_SECONDS:
            self._first = (self._first[0], done)
        self.done, self._busy = done, True

    def cells(self, done: int, total: int) -> None:
        """This many cells of the plan are done."""
        if done and self._busy:
            self.worked += 1
        self.finished, self.total, self._busy, self.done = done, total, False, 0

    def plan(self, forecast: Forecast, *, cells: int, reports: bool) -> None:
        """The work of the run is known; a report of all its cells may follow it."""
        from llmkick.study.parts import Part

        self.forecast = forecast
        if reports:
            seconds = REPORT_SECONDS + REPORT_SECONDS_A_CELL * cells
            forecast.add(Part(key="report", pool=("report",), steps=1, cost=seconds))

    @property
    def rate(self) -> float | None:
        """Steps per second of the current stage; None until it can be measured."""
        seconds, steps = time.monotonic() - self._first[0], self.done - self._first[1]
        return steps / seconds if steps > 0 and seconds > WARM_UP_SECONDS else None

    @property
    def share(self) -> float:
        """The share of the current cell that is done."""
        return min(1.0, self.done / self.steps) if self.steps and self._busy else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the plan is done; None until there is a rate."""
        if self.forecast is not None:
            return self.forecast.seconds_left
        worked = self.worked + self.share
        if worked <= 0 or not self.total:
            return None
        return (time.monotonic() - self.began) / worked * max(0.0, self.total - self.finished - self.share)
