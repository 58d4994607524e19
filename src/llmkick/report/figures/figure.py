"""A figure of the report: a chart, its title, its caption and its numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from llmkick.files import write_text
from llmkick.report.figures.board import Board, Spec

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


def write_svg(drawn: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure to `folder/NAME.svg` and its numbers to `NAME.csv`, without a browser or a network."""
    written = []
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(json.dumps(figure.spec), vl_version=VEGA_LITE)
        written.append(write_text(folder / f"{figure.name}.svg", svg))
        if figure.csv:
            write_text(folder / f"{figure.name}.csv", figure.csv)
    return written
