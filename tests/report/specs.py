"""What the tests read of a Vega-Lite specification."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pytest

from llmkick.report.figures import figure, figures, svg
from llmkick.report.figures.figure import Figure
from llmkick.study.results.results import StudyResult


def write_figures(result: StudyResult, drawn: Sequence[Figure] | None = None, *, aside: bool = False) -> list[Path]:
    """Draw every figure of a study and write it to its folder; `aside`: in a process of its own, as a run does."""
    chosen = figures.figures(result) if drawn is None else drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "drawn_aside", svg.drawn_aside if aside else drawn_here)
        with figures.figures_drawn(result, chosen) as write:
            return write()


@contextlib.contextmanager
def drawn_here(specs: Sequence[str], version: str) -> Iterator[Callable[[], list[str]]]:
    """Specifications drawn by this process, which has started the program that draws once."""
    yield lambda: [svg._svg(spec, version) for spec in specs]


def validate(spec: dict[str, Any]) -> None:
    """Raises if a specification is no valid Vega-Lite."""
    alt.ConcatChart.from_dict({key: value for key, value in spec.items() if key != "description"}, validate=True)


def rows_of(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a layer or a panel."""
    data = part.get("data", {})
    return data.get("values") or spec["datasets"].get(data.get("name"), [])


def layers(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every layer of every panel with its rows."""
    for panel in spec["concat"]:
        for layer in panel.get("layer", [panel]):
            yield layer, rows_of(spec, layer) or rows_of(spec, panel)


def points(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of data that a figure shows as points or bars."""
    for layer, rows in layers(spec):
        if isinstance(layer["mark"], dict) and layer["mark"].get("type") in ("point", "bar"):
            yield from rows
