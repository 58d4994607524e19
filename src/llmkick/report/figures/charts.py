"""Building blocks of the figures: axes, points with intervals, heat maps, theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures.board import Board, Layer, Panel, Spec
from llmkick.report.figures.methods import Methods

GREY = "#808080"  # readable on white and on black
INK, PAPER, FAINT = "#333333", "#ffffff", "#888888"  # page.js replaces the first two with the colours of the page
# As objects: altair takes long to make one of a text.
TIPS = (
    alt.Tooltip("recipe:N"), alt.Tooltip("task:N"), alt.Tooltip("value:N", title="score"), alt.Tooltip("change:N"),
    alt.Tooltip("verdict:N"),
)  # fmt: skip
LOSS_TITLE = f"relative loss ({formatting.GAIN_SIGN})"
# An axis of losses ends here unless a point lies beyond: an interval extends it downwards to the first at most.
LOWEST_LOSS, HIGHEST_LOSS = -0.3, 1.05
ROOM = 0.05  # beyond the last point
CUT = " Intervals are cut at the end of the axis."
HEIGHT = 190


def loss_axis(cells: pd.DataFrame) -> alt.Y:
    """The loss axis, the same for every task."""
    return alt.Y("y:Q", title=LOSS_TITLE, axis=loss_ticks(), scale=loss_scale(cells, "y"))


def loss_scale(cells: pd.DataFrame, column: str) -> alt.Scale:
    """The scale of the losses in a column: it contains every point, but intervals extend it only to a limit.

    A model that is below chance has lost more than all that is above chance.
    """
    losses, low = cells[column], cells["low"].dropna().clip(lower=LOWEST_LOSS)
    lowest = min([-ROOM, losses.min() - ROOM, *low])
    return alt.Scale(domain=[lowest, max(HIGHEST_LOSS, losses.max() + ROOM)], nice=False)


def cut_note(cells: pd.DataFrame, scale: alt.Scale) -> str:
    """CUT if an interval goes beyond either end of a scale, else nothing."""
    lowest, highest = scale["domain"]
    return CUT if ((cells["low"] < lowest) | (cells["high"] > highest)).any() else ""


def loss_ticks() -> alt.Axis:
    """The ticks of an axis of losses; those below nothing are gains."""
    label = f"(datum.value < 0 ? '{formatting.GAIN}' : '') + format(abs(datum.value), '~%')"
    return alt.Axis(labelExpr=label, tickCount=5)


def score_axis(cells: pd.DataFrame) -> alt.Y:
    """The score axis, from 0 to slightly above the best score; intervals do not extend it.

    It begins below 0 for a model that was asked fewer items than the dense one and is placed there by its loss.
    """
    best = max(float(cells["y"].max()), float(cells["dense"].max()), 0.05)
    worst = min(0.0, float(cells["y"].min()))
    scale = alt.Scale(domain=[worst, min(best * 1.15, max(best, 1.02))], nice=False)
    return alt.Y("y:Q", title="score", axis=alt.Axis(tickCount=5), scale=scale)


def level_axis(frame: pd.DataFrame, methods: Methods) -> tuple[alt.X, alt.XOffset]:
    """The axis of named levels, mild to severe, with methods side by side."""
    order = list(dict.fromkeys(frame.sort_values("order")["label"]))
    axis = alt.Axis(labelAngle=0, labelLimit=120, labelOverlap=False)
    x = alt.X("label:N", title=None, sort=order, axis=axis, scale=alt.Scale(padding=0.3))
    return x, alt.XOffset("method:N", sort=[name for name in methods.names if (frame["method"] == name).any()])


def level_line(height: float, *, dotted: bool = False) -> alt.Chart:
    """A thin horizontal line across a panel."""
    dash = [1, 3] if dotted else [1, 0]
    line = alt.Chart(pd.DataFrame([{"y": height}])).mark_rule(color=GREY if dotted else FAINT, strokeDash=dash)
    drawn: alt.Chart = line.encode(y=alt.Y("y:Q"))
    return drawn


def bars(frame: pd.DataFrame, y: alt.Y, methods: Methods, dense: float) -> list[Layer]:
    """A bar with its interval for every level and method; a horizontal line shows the dense score.

    Where methods have the same colour, their shapes are drawn at the ends of the bars.
    """
    x, side = level_axis(frame, methods)
    bar_y = alt.Y("y:Q", title="score", axis=alt.Axis(tickCount=5), scale=y["scale"], stack=None)
    base = alt.Chart(frame).encode(x=x, xOffset=side)
    low = y.copy()
    low.shorthand = "low:Q"
    bar: alt.Chart = base.mark_bar(opacity=0.85, clip=True).encode(y=bar_y, color=methods.colour, tooltip=list(TIPS))
    whisker = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, clip=True, color=INK)
    outlined = points(base.encode(color=methods.colour), y, methods, TIPS, stroke=INK, strokeWidth=0.8)
    ends = [outlined] if methods.share_colours else []
    return [level_line(dense), bar, *ends, cast(alt.Chart, whisker.encode(y=low, y2=alt.Y2("high:Q")))]


def ratio_axis(panel: pd.DataFrame, control: str) -> alt.Y:
    """The axis of perplexity or another control ÷ the dense model's; logarithmic, as losses in nats."""
    low, high = min(0.97, panel["y"].min()), max(1.25, panel[["y", "high"]].max().max() * 1.05)
    marks = [m * power for power in (1, 10, 100, 1000) for m in (1, 1.1, 1.25, 1.5, 2, 3, 5) if m * power <= high]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=marks, labelExpr="'×' + datum.label", format="~r", labelOverlap="greedy")
    return alt.Y("y:Q", title=f"{control} ÷ dense", axis=axis, scale=scale)


def rise_axis(rise: pd.Series[float], margin: float, control: str) -> tuple[alt.X, float, float]:
    """The axis of the relative rise of a control, linear up to the margin, logarithmic beyond it; and its ends."""
    low, high = min(0.0, float(rise.min())), max(2 * margin, float(rise.max()))
    marks = [share for share in (0, margin, 0.2, 0.5, 1, 2, 5, 10, 30, 100, 1000) if share <= high]
    scale = alt.Scale(type="symlog", constant=margin, domain=[low - 0.01, high * 1.25], nice=False)
    axis = alt.Axis(labelExpr="datum.value ? format(datum.value, '+~%') : '0'", values=marks, labelOverlap="greedy")
    x = alt.X("rise:Q", title=f"rise in {control}", scale=scale, axis=axis)
    return x, low - 0.01, high * 1.25


def with_intervals(base: alt.Chart, y: alt.Y, methods: Methods, *extra_tips: alt.Tooltip) -> list[alt.Chart]:
    """A point with its interval for every row; the exact numbers on hover."""
    tips = (*TIPS, *extra_tips)
    low = y.copy()
    low.shorthand = "low:Q"
    return [
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.5, clip=True)
        .encode(y=low, y2=alt.Y2("high:Q")),
        points(base, y, methods, tips),
    ]


def points(base: alt.Chart, y: alt.Y, methods: Methods, tips: Sequence[alt.Tooltip], **outline: Any) -> alt.Chart:
    """A point of the method's shape for every row."""
    point = base.mark_point(filled=True, size=55, opacity=1, clip=True, **outline)
    drawn: alt.Chart = point.encode(y=y, shape=methods.shape, tooltip=list(tips))
    return drawn


def with_margin(layers: Sequence[Layer], limit: float, *, title: alt.TitleParams) -> Panel:
    """A panel with a dashed line at the margin."""
    rule = alt.Chart(pd.DataFrame([{"y": limit}])).mark_rule(strokeDash=[4, 3], color=GREY).encode(y=alt.Y("y:Q"))
    return Panel(layers=[rule, *layers], width=260, height=HEIGHT, title=title)


def heat_map(frame: pd.DataFrame, field: str, title: str) -> alt.Chart:
    """One compressed model: depth × layer type."""
    scale = alt.Scale(scheme="viridis", domainMin=0)
    legend = alt.Legend(format=".0%" if field == "realised_sparsity" else "~g", gradientLength=140, tickCount=3)
    chart: alt.Chart = (
        alt.Chart(frame, title=title, width=260, height=alt.Step(17))
        .mark_rect(aria=False)  # hundreds of cells: tables/layers.csv serves a screen reader better
        .encode(
            x=alt.X("depth:O", title="block", axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)),
            y=alt.Y("kind:N", title=None, sort=None),
            color=alt.Color(f"{field}:Q", title=None, scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("kind:N", title="layer"),
                alt.Tooltip("depth:O", title="block"),
                alt.Tooltip("relative_output_error:Q", title="output error", format=".3f"),
                alt.Tooltip("realised_sparsity:Q", title="zeros", format=".1%"),
                alt.Tooltip("damping:Q", title="damping", format="~g"),
            ],
        )
    )
    return chart


def themed(
    panels: Sequence[Panel | Layer],
    *,
    columns: int = 3,
    minimum: int = 170,
    shared_colour: bool = True,
    usermeta: Mapping[str, object] | None = None,
    rest: Spec | None = None,
) -> Board:
    """Panels side by side, with thin lines and small type.

    `minimum` is the smallest panel width on the page; `usermeta` is further news for the page, `rest` for Vega-Lite.
    """
    # Each panel reserves room only for the methods that it shows.
    scale = {"xOffset": "independent", **({} if shared_colour else {"color": "independent"})}
    return Board(
        panels=panels,
        columns=columns,
        usermeta={"minimum": minimum, **(usermeta or {})},
        rest={"resolve": {"scale": scale}, "config": THEME, **(rest or {})},
    )


THEME: Spec = {
    "font": "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif",
    "background": PAPER,
    "padding": 8,
    "view": {"stroke": None, "continuousWidth": 300, "continuousHeight": 300},
    "axis": {
        "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "titleFontSize": 11, "labelFontSize": 11,
        "gridColor": FAINT, "gridOpacity": 0.25, "domainColor": FAINT, "tickColor": FAINT, "titlePadding": 8,
    },
    "title": {
        "anchor": "start", "frame": "group", "fontSize": 13, "subtitleFontSize": 11, "color": INK,
        "subtitleColor": INK, "offset": 8,
    },
    "legend": {
        "orient": "top", "columns": 6, "labelFontSize": 12, "symbolSize": 70, "labelColor": INK, "titleColor": INK,
    },
    "concat": {"spacing": 22},
}  # fmt: skip
