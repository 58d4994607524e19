"""What a run will take, and what would make it shorter: said before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkick.study.forecast import Forecast

if TYPE_CHECKING:
    from llmkick.study.advice import Advice
    from llmkick.study.expected_work import ExpectedWork

# How advice reads where it is shown; None where the setting cannot be given there.
Words = Callable[["Advice"], str | None]

# A run that is expected to take less than this many seconds needs no advice.
LONG_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """The size of a run before its work starts. `seconds` is None without a rate; `advice` says what is shorter."""

    cells: int
    items: int
    tokens: int
    compressions: int
    judgements: int
    seconds: float | None
    is_upper_bound: bool
    advice: Sequence[Advice]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.cells or self.compressions)

    @property
    def is_long(self) -> bool:
        """Whether it takes minutes, or nobody knows."""
        return self.seconds is None or self.seconds > LONG_SECONDS

    def lines(self, words: Words = str) -> list[str]:
        """The announcement as lines of text, its advice in these words; by default those of a study file."""
        most = "at most " if self.is_upper_bound else ""
        cells = f"{self.cells:,} cell{'s' * (self.cells > 1)}"
        parts = [f"{self.items:,} items in {cells}, {self.tokens:,} tokens"] if self.cells else []
        if self.tokens and not self.cells:
            parts.append(f"{self.tokens:,} calibration tokens")
        if self.compressions:
            parts.append(f"{self.compressions} compression{'s' * (self.compressions > 1)}")
        if self.judgements:
            parts.append(f"{self.judgements:,} judgements")
        took = "time unknown until the first answers" if self.seconds is None else f"about {duration(self.seconds)}"
        lines = [f"to do: {most}{', '.join(parts)}: {took}"]
        advice = [text for text in map(words, self.advice) if text] if self.is_long else []
        if advice:
            lines.append(f"shorter: {'; '.join(advice)}")
        return lines


def announce(work: ExpectedWork, forecast: Forecast, *, advice: Sequence[Advice] = ()) -> Announcement:
    """The announcement of what is left of a run with this work."""
    open_cells, items = forecast.left("ask")
    passes, loads = forecast.left("compress")[0], forecast.left("load")[0]
    return Announcement(
        cells=open_cells,
        items=items,
        tokens=round(work.tokens * items / work.items) if work.items else work.tokens,
        compressions=loads or passes,
        judgements=work.judgements,
        seconds=forecast.seconds_left,
        is_upper_bound=work.stops_early,
        advice=tuple(advice),
    )


def duration(seconds: float) -> str:
    """Seconds for a person, no more exact than a forecast is: 45 → "45 seconds", 600 → "10 minutes"."""
    if seconds < 90:
        rounded = max(1, round(seconds))
        return f"{rounded} second{'s' * (rounded > 1)}"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36_000 else f"{round(seconds / 3600)} hours"
