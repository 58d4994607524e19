"""A figure of the report: a chart, its title, its caption and its numbers."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import altair as alt
import pandas as pd
import vl_convert

from llmkick.files import write_text

# The Vega-Lite specification of a chart.
Spec = dict[str, Any]
# The rows of a chart, as objects.
Rows = list[dict[str, Any]]
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what it shows and how to read it; `rows` are its numbers, as they are saved."""

    name: str
    title: str
    caption: str
    chart: alt.ConcatChart
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)

    @functools.cached_property
    def spec(self) -> Spec:
        """The Vega-Lite specification with its data; the tests validate it, not this method."""
        rows: list[Rows] = []

        def set_aside(frame: Any) -> Spec:
            rows.append(cast(Rows, alt.to_values(frame)["values"]))
            return {"name": f"rows-{len(rows) - 1}"}

        # altair copies a chart's specification many times, with all rows that are in it: they are put in afterwards.
        with _transforming(set_aside):
            spec: Spec = self.chart.to_dict(validate=False)
        return {**_with_rows(spec, rows), "description": f"{self.title}. {self.caption}".strip(". ")}

    @property
    def csv(self) -> str:
        """The numbers as CSV text; empty if the figure has no numbers."""
        return "" if self.rows.empty else str(self.rows.to_csv(index=False, lineterminator="\n"))


@contextlib.contextmanager
def _transforming(transformer: Callable[[Any], Spec]) -> Iterator[None]:
    """Pass the data of every chart through a function."""
    alt.data_transformers.register("llmkick", transformer)
    with alt.data_transformers.enable("llmkick", consolidate_datasets=False):
        yield


def _with_rows(spec: Any, rows: Sequence[Rows]) -> Any:
    """A specification in which data named `rows-NUMBER` are the rows themselves."""
    if isinstance(spec, list):
        return [_with_rows(part, rows) for part in spec]
    if not isinstance(spec, dict):
        return spec
    name = spec.get("name")
    if set(spec) == {"name"} and isinstance(name, str) and name.startswith("rows-"):
        return {"values": rows[int(name.removeprefix("rows-"))]}
    return {key: _with_rows(value, rows) for key, value in spec.items()}


def write_svg(drawn: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure to `folder/NAME.svg` and its numbers to `NAME.csv`, without a browser or a network."""
    written = []
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(json.dumps(figure.spec), vl_version=VEGA_LITE)
        written.append(write_text(folder / f"{figure.name}.svg", svg))
        if figure.csv:
            write_text(folder / f"{figure.name}.csv", figure.csv)
    return written
