"""Panels side by side as one Vega-Lite specification, which holds every table of rows once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import altair as alt
import numpy as np
import pandas as pd

# The Vega-Lite specification of a chart.
Spec = dict[str, Any]
# The rows of a chart, as objects.
Rows = list[Spec]
# A layer of a panel.
Layer = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Layers over each other. altair's own layers copy all that is in them, many times; these do not.

    `title` is a text or altair's title, `height` a number of pixels or altair's step for each row.
    """

    layers: Sequence[Layer]
    width: float
    height: float | alt.Step
    title: str | alt.TitleParams | None = None

    def spec(self) -> Spec:
        """The panel's specification; rows are named as the enclosing data transformer names them."""
        title = {} if self.title is None else {"title": _plain(self.title)}
        size = {"width": self.width, "height": _plain(self.height)}
        layers = [part_spec(layer) for layer in self.layers]
        return {**layers[0], **title, **size} if len(layers) == 1 else {"layer": layers, **title, **size}


@dataclass(frozen=True, kw_only=True)
class Board:
    """Panels side by side in rows of `columns`; `rest` are further entries of the specification."""

    panels: Sequence[Panel | Layer]
    columns: int
    usermeta: Mapping[str, object]
    rest: Spec = field(default_factory=dict)

    def to_dict(self) -> Spec:
        """The Vega-Lite specification, with its rows under `datasets`."""
        tables: dict[int, tuple[pd.DataFrame, str]] = {}

        def set_aside(frame: pd.DataFrame) -> Spec:
            _, name = tables.setdefault(id(frame), (frame, f"rows-{len(tables)}"))
            return {"name": name}

        with _transforming(set_aside):
            panels = [panel.spec() if isinstance(panel, Panel) else part_spec(panel) for panel in self.panels]
        return {
            "$schema": alt.SCHEMA_URL,
            "usermeta": dict(self.usermeta),
            **self.rest,
            "columns": self.columns,
            "concat": panels,
            "datasets": {name: plain_values(frame) for frame, name in tables.values()},
        }


def part_spec(chart: Layer) -> Spec:
    """A chart as a part of a specification; the tests validate it, not this function."""
    spec: Spec = chart.to_dict(validate=False, context={"top_level": False})
    return spec


def plain_values(frame: pd.DataFrame) -> Rows:
    """The rows of a table as JSON holds them: null for undefined values."""
    columns = {str(name): [_value(value) for value in frame[name].tolist()] for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, np.generic):
        return _value(value.item())
    if isinstance(value, list | tuple):
        return [_value(part) for part in value]
    assert value is pd.NA, value
    return None


def _plain(value: object) -> object:
    return value.to_dict(validate=False) if isinstance(value, alt.SchemaBase) else value


@contextlib.contextmanager
def _transforming(transformer: Callable[[pd.DataFrame], Spec]) -> Iterator[None]:
    """Pass the data of every chart through a function."""
    alt.data_transformers.register("llmkick", cast(Any, transformer))
    with alt.data_transformers.enable("llmkick", consolidate_datasets=False):
        yield
