"""Power figures: the smallest detectable loss and the power against the number of items."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from llmkick.errors import ConfigError
from llmkick.files import write_text
from llmkick.report.figures.board import Board
from llmkick.report.figures.charts import GREY, themed
from llmkick.report.figures.figure import VEGA_LITE
from llmkick.statistics import smallest_detectable_loss, verdict_power

POWER = 0.8
# Shown next to the requested accuracy, so that a reader sees its influence.
ACCURACIES = (0.3, 0.45, 0.6, 0.75, 0.9)
TICKS = [30, 100, 300, 1_000, 3_000, 10_000, 30_000]
FORMS = (".svg", ".html", ".json")


def power_frame(
    accuracies: tuple[float, ...], *, loss: float, margin: float, power: float = POWER, **design: float
) -> pd.DataFrame:
    """For 30 to 30,000 items and each dense accuracy: the smallest detectable loss and the probability of a verdict.

    design: other arguments of `statistics.verdict_power`, such as discordance and chance.
    """
    rows = []
    for accuracy in accuracies:
        for items in np.unique(np.geomspace(30, 30_000, 90).astype(int)).tolist():
            common = {"margin": margin, **design}
            rows.append(
                {
                    "accuracy": f"{accuracy:g}",
                    "items": items,
                    "detectable": smallest_detectable_loss(items, accuracy, power=power, **common),
                    "power": verdict_power(items, accuracy, loss=loss, **common),
                }
            )
    return pd.DataFrame(rows)


def power_chart(
    accuracy: float, *, loss: float = 0.0, margin: float = 0.05, power: float = POWER, **design: float
) -> Board:
    """Two panels over the number of items, a line for each dense accuracy; design: as of `power_frame`."""
    guessing = design.get("chance", 0.0)
    others = [other for other in ACCURACIES if abs(other - accuracy) > 0.05 and other > guessing + 0.05]
    accuracies = tuple(sorted([accuracy, *others]))
    frame = power_frame(accuracies, loss=loss, margin=margin, power=power, **design)
    frame["asked"] = frame["accuracy"] == f"{accuracy:g}"
    items = alt.X(
        "items:Q", title="items", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~s", values=TICKS)
    )
    colour = alt.Color(
        "accuracy:N", title="dense accuracy", sort=None, scale=alt.Scale(scheme="viridis"), legend=alt.Legend()
    )
    width = alt.condition("datum.asked", alt.value(3), alt.value(1.3))
    tips = [
        "accuracy:N",
        "items:Q",
        alt.Tooltip("detectable:Q", title="detectable loss", format=".1%"),
        alt.Tooltip("power:Q", format=".0%"),
    ]
    verdict = "matching" if loss < margin else "not matching"
    panels = []
    for column, title, mark, top in (
        ("detectable", f"Smallest loss called “not matching” ({power:.0%} power)", margin, 0.6),
        ("power", f"Power: a true loss of {loss:.0%} is called “{verdict}”", power, 1.0),
    ):
        y = alt.Y(f"{column}:Q", title=None, axis=alt.Axis(format="~%"), scale=alt.Scale(domain=[0, top]))
        shown = frame[frame[column].notna()]
        lines = (
            alt.Chart(shown, title=title, width=330, height=230)
            .mark_line(clip=True)
            .encode(x=items, y=y, color=colour, strokeWidth=width, tooltip=tips)
        )
        rule = alt.Chart(pd.DataFrame([{"y": mark}])).mark_rule(strokeDash=[4, 3], color=GREY).encode(y="y:Q")
        panels.append(alt.layer(rule, lines))
    return themed(panels, columns=2)


def write_chart(chart: Board, path: Path) -> Path:
    """Write a chart as SVG, as a page of its own, or as its specification, by the name's ending."""
    if path.suffix not in FORMS:
        raise ConfigError(f"{path} should end in one of: {', '.join(FORMS)}")
    spec = json.dumps(chart.to_dict())
    if path.suffix == ".svg":
        return write_text(path, vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    if path.suffix == ".html":
        return write_text(path, vl_convert.vegalite_to_html(spec, vl_version=VEGA_LITE, bundle=True))
    return write_text(path, spec)
