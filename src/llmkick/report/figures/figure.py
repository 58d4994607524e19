"""A figure of the report: a chart, its title, its caption and its numbers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import altair as alt
import pandas as pd

from llmkick.files import write_text
from llmkick.report.figures.board import Board, Spec
from llmkick.report.figures.svg import drawn_aside

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what it shows and how to read it; `rows` are its numbers, as they are saved."""

    name: str
    title: str
    caption: str
    chart: Board
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)

    @functools.cached_property
    def spec(self) -> Spec:
        """The Vega-Lite specification with its data."""
        return {**self.chart.to_dict(), "description": f"{self.title}. {self.caption}".strip(". ")}

    @property
    def csv(self) -> str:
        """The numbers as CSV text; empty if the figure has no numbers."""
        return "" if self.rows.empty else str(self.rows.to_csv(index=False, lineterminator="\n"))


@contextlib.contextmanager
def drawn_meanwhile(drawn: Sequence[Figure], folder: Path) -> Iterator[Callable[[], list[Path]]]:
    """Begin to draw figures; what is yielded writes each to `folder/NAME.svg`, and its numbers to `NAME.csv`.

    Neither a browser nor a network is needed.
    """
    with drawn_aside([json.dumps(figure.spec) for figure in drawn], VEGA_LITE) as finish:

        def write() -> list[Path]:
            written = []
            for figure, svg in zip(drawn, finish(), strict=True):
                written.append(write_text(folder / f"{figure.name}.svg", svg))
                if figure.csv:
                    write_text(folder / f"{figure.name}.csv", figure.csv)
            return written

        yield write
