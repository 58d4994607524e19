"""The figures: loss against level beside perplexity, perplexity against loss, output error by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from llmkick.report import wording
from llmkick.report.cells import comparisons_by_cell, dense_scores, ordered_tasks
from llmkick.report.levels import KINDS, level_of
from llmkick.report.tables import layer_means
from llmkick.report.writing import write_text
from llmkick.study.results import StudyResult

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
# Okabe & Ito's palette (jfly.uni-koeln.de/color), told apart without colour vision; shapes say it once more.
STYLES: Mapping[str, tuple[str, str]] = {
    "magnitude": ("#e69f00", "square"),
    "wanda": ("#0072b2", "circle"),
    "sparsegpt": ("#009e73", "triangle-up"),
    "rtn": ("#d55e00", "diamond"),
    "gptq": ("#cc79a7", "triangle-down"),
}
OTHER_STYLES = (("#56b4e9", "cross"), ("#8c6d31", "triangle-right"), ("#7f7f7f", "triangle-left"))
GREY = "#808080"  # readable on white and on black
DODGE = 0.014  # of the axis: levels that methods share are drawn side by side
LOWEST_LOSS, HIGHEST_LOSS = -0.3, 1.05
HEIGHT = 190


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what it shows, and what to see in it."""

    name: str
    title: str
    caption: str
    chart: alt.TopLevelMixin

    def spec(self) -> dict[str, Any]:
        """The chart in Vega-Lite's own terms, data included."""
        with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
            spec: dict[str, Any] = self.chart.to_dict()
        return spec


def figures(result: StudyResult) -> list[Figure]:
    """Every figure the study has data for."""
    cells = cells_frame(result)
    levels = [_level_figure(result, cells, kind) for kind in KINDS if (cells["kind"] == kind).any()]
    measured = set(cells.loc[cells["signal"], "metric"]) if len(cells) else set()
    return [_control_figure(result, cells), *levels] if measured == {"score", "perplexity"} else levels


def write_figures(result: StudyResult, folder: Path, *, drawn: Sequence[Figure] | None = None) -> list[Path]:
    """Write every figure to `folder/figures/NAME.svg`, without a browser or a network."""
    layers = [layer_figure(result)] if result.compression else []
    written = []
    for figure in [*(figures(result) if drawn is None else drawn), *layers]:
        svg = vl_convert.vegalite_to_svg(json.dumps(figure.spec()), vl_version=VEGA_LITE)
        written.append(write_text(folder / "figures" / f"{figure.name}.svg", svg))
    return written


def cells_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × task, with the recipe's place on the axes and the texts of a tooltip."""
    levels = {entry["recipe"]: level_of(entry["recipe"]) for entry in result.comparisons}
    order = sorted(levels, key=lambda recipe: levels[recipe].severity)
    rows = []
    for (recipe, task), entry in comparisons_by_cell(result).items():
        level = levels[recipe]
        control = "outcome" in entry
        low, high = entry["interval"] or (None, None)
        rows.append(
            {
                "recipe": recipe,
                "task": task,
                "metric": "perplexity" if control else "score",
                "method": level.method,
                "kind": level.kind,
                "label": level.label,
                "order": order.index(recipe),
                "sparsity": level.sparsity,
                "y": 1 + entry["relative_increase"] if control else entry["relative_drop"],
                "low": _ratio(low) if control else low,
                "high": _ratio(high) if control else high,
                "value": wording.score(entry["compressed"], "perplexity" if control else ""),
                "change": wording.increase(entry) if control else wording.loss(entry),
                "verdict": entry["outcome"]
                if control
                else f"{wording.mark(entry['verdict']).symbol} {entry['verdict']}",
                "signal": control or entry["verdict"] != "no signal",
            }
        )
    columns = list(rows[0]) if rows else ["recipe", "task", "metric", "method", "kind"]
    return pd.DataFrame(rows, columns=columns)


def layer_figure(result: StudyResult) -> Figure:
    """Relative output error of every layer: blocks from left to right, layer types from top to bottom."""
    means = layer_means(result)
    models = dict.fromkeys(means["model"])
    panels = [heat_map(means[means["model"] == model], title=str(model)) for model in models]
    return Figure(
        name="output-error",
        title="Output error by layer",
        caption="How far each layer's output moved on calibration text, relative to its size.",
        chart=_themed(panels),
    )


def heat_map(frame: pd.DataFrame, *, title: str = "") -> alt.Chart:
    """One compressed model: depth × layer type."""
    return (
        alt.Chart(frame, title=title, width=260, height=alt.Step(17))
        .mark_rect(aria=False)  # hundreds of cells: the table of layers is what a screen reader can use
        .encode(
            x=alt.X("depth:O", title="block", axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)),
            y=alt.Y("kind:N", title=None, sort=None),
            color=alt.Color(
                "relative_output_error:Q", title="output error", scale=alt.Scale(scheme="viridis", domainMin=0)
            ),
            tooltip=[
                alt.Tooltip("kind:N", title="layer"),
                alt.Tooltip("depth:O", title="block"),
                alt.Tooltip("relative_output_error:Q", title="output error", format=".3f"),
                alt.Tooltip("realised_sparsity:Q", title="zeros", format=".1%"),
            ],
        )
    )


def heat_map_spec() -> dict[str, Any]:
    """The heat map without its data, for a page that shows one model at a time."""
    empty = pd.DataFrame(columns=["kind", "depth", "relative_output_error", "realised_sparsity"])
    return Figure(name="", title="", caption="", chart=_themed([heat_map(empty)])).spec()


def _level_figure(result: StudyResult, cells: pd.DataFrame, kind: str) -> Figure:
    """One kind of level: a panel for every task, perplexity last."""
    of_kind = cells[cells["kind"] == kind]
    tasks = [task for task in ordered_tasks(result) if (of_kind["task"] == task["name"]).any()]
    dense = dense_scores(result)
    scale = _methods(of_kind)
    panels = []
    for task in tasks:
        panel = of_kind[of_kind["task"] == task["name"]]
        control = task["metric"] == "perplexity"
        title = _panel_title(panel, task, dense.get(task["name"]))
        y = _ratio_axis(panel) if control else _loss_axis(cells)
        limit = (1 if control else 0) + result.study["margin"]
        draw = _against_sparsity if kind == "sparsity" else _against_levels
        panels.append(_with_margin(draw(panel, y, scale, start=1.0 if control else 0.0), limit).properties(title=title))
    margin = wording.setting(result.study["margin"])
    return Figure(
        name={"sparsity": "sparsity", "nm": "n-m"}.get(kind, kind),
        title=KINDS[kind],
        caption=f"Relative loss of score with its interval; the dashed line is the margin of {margin}. "
        "The last panel is the control: perplexity over that of the dense model, on a logarithmic axis.",
        chart=_themed(panels),
    )


def _against_sparsity(frame: pd.DataFrame, y: alt.Y, scale: dict[str, Any], *, start: float) -> alt.LayerChart:
    """Lines over the share of zeros, from the dense model on."""
    place = {method: i for i, method in enumerate(dict.fromkeys(frame["method"]))}
    step = DODGE * float(frame["sparsity"].max())
    shift = frame["method"].map(lambda method: step * (place[method] - (len(place) - 1) / 2))
    dense = pd.DataFrame([{"method": method, "x": 0.0, "y": start, "recipe": "dense"} for method in place])
    points = frame.assign(x=frame["sparsity"].astype(float) + shift)
    limits = alt.Scale(domain=[0, max(points["x"].max() * 1.06, 0.1)], nice=False)
    x = alt.X("x:Q", title="share of weights set to zero", axis=alt.Axis(format="~%", tickCount=5), scale=limits)
    base = alt.Chart(points).encode(x=x, color=_colour(scale))
    line = alt.Chart(pd.concat([dense, points[["method", "x", "y", "recipe"]]])).mark_line(
        strokeWidth=1.5, opacity=0.75, clip=True
    )
    return alt.layer(
        line.encode(x=x, y=y, color=_colour(scale)),
        base.mark_rule(strokeWidth=1.5, clip=True).encode(y=_bound("low", y), y2="high:Q"),
        _points(base, y, scale),
    )


def _against_levels(frame: pd.DataFrame, y: alt.Y, scale: dict[str, Any], *, start: float) -> alt.LayerChart:
    """Points over named levels, mild to severe, methods side by side."""
    del start
    order = list(dict.fromkeys(frame.sort_values("order")["label"]))
    x = alt.X(
        "label:N", title=None, sort=order, axis=alt.Axis(labelAngle=0, labelLimit=90), scale=alt.Scale(padding=0.3)
    )
    methods = [method for method in scale["domain"] if (frame["method"] == method).any()]
    base = alt.Chart(frame).encode(x=x, xOffset=alt.XOffset("method:N", sort=methods), color=_colour(scale))
    return alt.layer(
        base.mark_rule(strokeWidth=1.5, clip=True).encode(y=_bound("low", y), y2="high:Q"), _points(base, y, scale)
    )


def _control_figure(result: StudyResult, cells: pd.DataFrame) -> Figure:
    """Every recipe's loss over its rise in perplexity, a panel for each task."""
    control = next(task["name"] for task in result.tasks if task["metric"] == "perplexity")
    rise = cells.loc[cells["task"] == control, ["recipe", "y", "change", "verdict"]].assign(y=lambda f: f["y"] - 1)
    scores = cells[(cells["metric"] == "score") & cells["signal"]]
    both = scores.merge(rise.rename(columns={"y": "x", "change": "perplexity", "verdict": "outcome"}), on="recipe")
    x = _rise_axis(both["x"], result.study["margin"])
    y, scale = _loss_axis(cells), _methods(cells)
    panels = [
        _against_rise(both[both["task"] == task["name"]], x, y, scale, margin=result.study["margin"])
        for task in ordered_tasks(result)
        if (both["task"] == task["name"]).any()
    ]
    return Figure(
        name="perplexity-against-loss",
        title="What perplexity would have said",
        caption="Each point is a recipe: how much it loses, over how much perplexity rises. Left of the upright line "
        "perplexity stays within the margin; above the level line more than the margin is lost. The shaded corner is "
        "where knowledge is lost and perplexity does not tell; losses shown to be there are named.",
        chart=_themed(panels),
    )


def _against_rise(frame: pd.DataFrame, x: alt.X, y: alt.Y, scale: dict[str, Any], *, margin: float) -> alt.LayerChart:
    upright = alt.Chart(pd.DataFrame([{"x": margin}])).mark_rule(strokeDash=[4, 3], color=GREY).encode(x=x)
    corner = alt.Chart(pd.DataFrame([{"x": -1, "x2": margin, "y": margin, "y2": HIGHEST_LOSS}]))
    shade = corner.mark_rect(clip=True, opacity=0.13, color="#d55e00").encode(x=x, x2="x2", y=y, y2="y2")
    base = alt.Chart(frame).encode(x=x, color=_colour(scale))
    tips = [*_tips(), alt.Tooltip("perplexity:N"), alt.Tooltip("outcome:N", title="by perplexity")]
    chart = alt.layer(
        shade,
        upright,
        base.mark_rule(strokeWidth=1.2, clip=True, opacity=0.6).encode(y=_bound("low", y), y2="high:Q"),
        _points(base, y, scale).encode(tooltip=tips),
    )
    lost = frame["verdict"].str.endswith("not matching") & (frame["outcome"] == "within margin")
    names = list(frame.loc[lost, "recipe"])
    hidden = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    title = alt.TitleParams(
        str(frame["task"].iloc[0]), subtitle=f"hidden losses: {hidden}" if hidden else "no hidden loss is shown"
    )
    return _with_margin(chart, margin).properties(title=title)


def _rise_axis(rise: pd.Series[float], margin: float) -> alt.X:
    """Even up to the margin, where it matters, and logarithmic beyond."""
    low, high = min(0.0, float(rise.min())), max(2 * margin, float(rise.max()))
    marks = [share for share in (0, 0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 100, 1000) if share <= high]
    scale = alt.Scale(type="symlog", constant=margin, domain=[low - 0.01, high * 1.25], nice=False)
    axis = alt.Axis(format="+~%", values=marks, labelOverlap=True)
    return alt.X("x:Q", title="rise in perplexity", scale=scale, axis=axis)


def _points(base: alt.Chart, y: alt.Y, scale: dict[str, Any]) -> alt.Chart:
    shapes = alt.Scale(domain=scale["domain"], range=scale["shapes"])
    return base.mark_point(filled=True, size=55, opacity=1, clip=True).encode(
        y=y, shape=alt.Shape("method:N", title=None, scale=shapes), tooltip=_tips()
    )


def _tips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("recipe:N"),
        alt.Tooltip("task:N"),
        alt.Tooltip("value:N", title="score"),
        alt.Tooltip("change:N", title="change"),
        alt.Tooltip("verdict:N"),
    ]


def _bound(field: str, y: alt.Y) -> alt.Y:
    """The same axis for an end of an interval."""
    axis = y.copy()
    axis.shorthand = f"{field}:Q"
    return axis


def _colour(scale: dict[str, Any]) -> alt.Color:
    return alt.Color("method:N", title=None, scale=alt.Scale(domain=scale["domain"], range=scale["colours"]))


def _methods(frame: pd.DataFrame) -> dict[str, Any]:
    """The methods at hand, each with its colour and its shape wherever it appears."""
    present = list(dict.fromkeys(frame["method"]))
    known = [method for method in STYLES if method in present]
    others = [method for method in present if method not in STYLES]
    style = {**STYLES, **{method: OTHER_STYLES[i % len(OTHER_STYLES)] for i, method in enumerate(others)}}
    domain = [*known, *others]
    return {
        "domain": domain,
        "colours": [style[method][0] for method in domain],
        "shapes": [style[method][1] for method in domain],
    }


def _loss_axis(cells: pd.DataFrame) -> alt.Y:
    """The same for every task, wide enough for what was found but not for an endless interval."""
    scores = cells[(cells["metric"] == "score") & cells["signal"]]
    lowest = min([-0.05, *scores[["low", "y"]].min(axis=1).dropna()])
    domain = [max(lowest, LOWEST_LOSS), HIGHEST_LOSS]
    return alt.Y("y:Q", title="relative loss", axis=alt.Axis(format="~%", tickCount=5), scale=alt.Scale(domain=domain))


def _ratio_axis(panel: pd.DataFrame) -> alt.Y:
    low, high = min(0.97, panel["y"].min()), max(1.25, panel[["y", "high"]].max().max() * 1.05)
    marks = [m * power for power in (1, 10, 100, 1000) for m in (1, 1.5, 2, 3, 5) if m * power <= high]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=marks, labelExpr="'×' + datum.label", format="~r", labelOverlap=True)
    return alt.Y("y:Q", title="perplexity ÷ dense", axis=axis, scale=scale)


def _with_margin(chart: alt.LayerChart, limit: float) -> alt.LayerChart:
    rule = alt.Chart(pd.DataFrame([{"y": limit}])).mark_rule(strokeDash=[4, 3], color=GREY).encode(y="y:Q")
    return alt.layer(rule, chart).properties(width=260, height=HEIGHT)


def _panel_title(panel: pd.DataFrame, task: Mapping[str, Any], dense: float | None) -> alt.TitleParams:
    said = f"dense {wording.score(dense, task['metric'])}"
    if not panel["signal"].all():
        said += ", no signal"
    return alt.TitleParams(task["name"], subtitle=said)


def _themed(panels: list[Any]) -> alt.TopLevelMixin:
    """Panels side by side; quiet lines, small type. The page swaps the inks for its own."""
    ink, faint = "#333333", "#888888"
    themed: alt.TopLevelMixin = alt.concat(*panels, columns=4 if len(panels) == 4 else 3).configure(
        font="-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif",
        background="#ffffff",
        padding=8,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=ink, titleColor=ink, titleFontWeight="normal", titleFontSize=11, labelFontSize=11,
            gridColor=faint, gridOpacity=0.25, domainColor=faint, tickColor=faint, titlePadding=8,
        ),
        title=alt.TitleConfig(
            anchor="start", frame="group", fontSize=13, subtitleFontSize=11, color=ink, subtitleColor=ink, offset=8
        ),
        legend=alt.LegendConfig(orient="top", labelFontSize=12, symbolSize=70, labelColor=ink, titleColor=ink),
        text=alt.MarkConfig(fill=ink),
        concat=alt.CompositionConfig(spacing=22),
    )  # fmt: skip
    return themed


def _ratio(increase: float | None) -> float | None:
    return None if increase is None else 1 + increase
