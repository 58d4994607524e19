"""The figures: loss against level beside perplexity, perplexity against loss, output error by layer."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from llmkick.report import charts, wording
from llmkick.report.cells import comparisons_by_cell, dense_scores, ordered_tasks
from llmkick.report.levels import KINDS, level_of
from llmkick.report.tables import layer_means
from llmkick.report.writing import write_text
from llmkick.study.results import CONTROL_METRICS, StudyResult

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
DODGE = 0.014  # of the axis: levels that methods share are drawn side by side
LABEL_WIDTH = 46  # pixels that a level's name needs, as 4b-g128
NAMES = {"sparsity": "sparsity", "nm": "n-m"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what it shows, and what to see in it."""

    name: str
    title: str
    caption: str
    chart: alt.ConcatChart

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The chart in Vega-Lite's own terms, data included; that it is valid is for the tests to say."""
        with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=False):
            spec: dict[str, Any] = self.chart.to_dict(validate=False)
        return {**spec, "description": f"{self.title}. {self.caption}".strip(". ")}


def figures(result: StudyResult) -> list[Figure]:
    """Every figure of scores and perplexity that the study has data for."""
    cells = cells_frame(result)
    levels = [_level_figure(result, cells, kind) for kind in KINDS if (cells["kind"] == kind).any()]
    both = set(cells["metric"]) == {"score", "perplexity"}
    return [_control_figure(result, cells), *levels] if both else levels


def write_figures(result: StudyResult, folder: Path, *, drawn: Sequence[Figure] | None = None) -> list[Path]:
    """Write every figure to `folder/figures/NAME.svg`, without a browser or a network."""
    layers = [layer_figure(result)] if result.compression else []
    written = []
    for figure in [*(figures(result) if drawn is None else drawn), *layers]:
        svg = vl_convert.vegalite_to_svg(json.dumps(figure.spec), vl_version=VEGA_LITE)
        written.append(write_text(folder / "figures" / f"{figure.name}.svg", svg))
    return written


def cells_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × task with something to lose: its place on the axes, the texts of its tooltip."""
    levels = {entry["recipe"]: level_of(entry["recipe"]) for entry in result.comparisons}
    order = sorted(levels, key=lambda recipe: levels[recipe].severity)
    rows = []
    for (recipe, task), entry in comparisons_by_cell(result).items():
        level = levels[recipe]
        place = {"method": level.method, "kind": level.kind, "label": level.label, "sparsity": level.sparsity}
        rows.append({"recipe": recipe, "task": task, "order": order.index(recipe), **place, **_height(entry)})
    columns = ["recipe", "task", "order", "method", "kind", "label", "sparsity", *_HEIGHT]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = ["sparsity", "y", "low", "high"]
    frame[numbers] = frame[numbers].astype(float)
    return frame[frame["y"].notna() & ~frame["verdict"].str.endswith("no signal")]


_HEIGHT = ("metric", "y", "low", "high", "value", "change", "verdict")


def _height(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, or perplexity over that of the dense model, with its interval and in words."""
    bounds = entry["interval"]
    low, high = bounds or (None, None)
    if "outcome" in entry:
        low, high = (1 + bounds[0], 1 + bounds[1]) if bounds else (None, None)
        y, change = 1 + entry["relative_increase"], wording.increase(entry)
        value = wording.score(entry["compressed"], "perplexity")
        found: tuple[Any, ...] = ("perplexity", y, low, high, value, change, entry["outcome"])
    else:
        verdict = f"{wording.mark(entry['verdict']).symbol} {entry['verdict']}"
        value, change = wording.score(entry["compressed"]), wording.loss(entry)
        found = ("score", entry["relative_drop"], low, high, value, change, verdict)
    return dict(zip(_HEIGHT, found, strict=True))


def layer_figure(result: StudyResult) -> Figure:
    """Output error of every layer of every compressed model: blocks from left to right, layer types down."""
    means = layer_means(result)
    panels = [
        charts.heat_map(means[means["model"] == model], "relative_output_error", str(model))
        for model in dict.fromkeys(means["model"])
    ]
    return Figure(
        name="output-error",
        title="Output error by layer",
        caption="How far each layer's output moved on calibration text, relative to its size.",
        chart=charts.themed(panels),
    )


def model_heat_maps() -> dict[str, Any]:
    """Output error and zeros of one compressed model, without the data: the page has a choice of models."""
    fields = {"relative_output_error": "Output error", "realised_sparsity": "Zeros"}
    empty = pd.DataFrame(columns=["kind", "depth", *fields])
    panels = [charts.heat_map(empty, field, title) for field, title in fields.items()]
    chart = charts.themed(panels, columns=2, minimum=230, shared_colour=False)
    return Figure(name="layers", title="", caption="", chart=chart).spec


def _level_figure(result: StudyResult, cells: pd.DataFrame, kind: str) -> Figure:
    """One kind of level: a panel for every task, perplexity last."""
    of_kind = cells[cells["kind"] == kind]
    margin, dense = result.study["margin"], dense_scores(result)
    methods, panels = charts.Methods.of(of_kind), []
    for task in ordered_tasks(result):
        panel = of_kind[of_kind["task"] == task["name"]]
        if panel.empty:
            continue
        control = task["metric"] in CONTROL_METRICS
        y, start = (charts.ratio_axis(panel), 1.0) if control else (charts.loss_axis(cells), 0.0)
        draw = _against_sparsity if kind == "sparsity" else _against_levels
        title = alt.TitleParams(
            task["name"], subtitle=f"dense {wording.score(dense.get(task['name']), task['metric'])}"
        )
        panels.append(charts.with_margin(draw(panel, y, methods, start), start + margin).properties(title=title))
    few = kind != "sparsity" and of_kind["label"].nunique() * LABEL_WIDTH < 100
    width = 170 if kind == "sparsity" else max(80, LABEL_WIDTH * of_kind["label"].nunique())
    return Figure(
        name=NAMES.get(kind, kind),
        title=KINDS[kind],
        caption=_caption(result, of_kind),
        chart=charts.themed(panels, columns=6 if few else 3, minimum=width),
    )


def _caption(result: StudyResult, cells: pd.DataFrame) -> str:
    margin, shown = wording.setting(result.study["margin"]), set(cells["task"])
    silent = [task["name"] for task in ordered_tasks(result) if task["name"] not in shown]
    sentences = [f"Relative loss of score with its interval; the dashed line is the margin of {margin}."]
    if "perplexity" in set(cells["metric"]):
        sentences.append("Perplexity, the control, comes last: over that of the dense model, on a logarithmic axis.")
    if (cells.loc[cells["metric"] == "score", "low"] < charts.LOWEST_LOSS).any():
        sentences.append("Intervals are cut at the end of the axis.")
    if silent:
        sentences.append(f"Left out, for want of a signal: {wording.listed(silent)}.")
    return " ".join(sentences)


def _against_sparsity(frame: pd.DataFrame, y: alt.Y, methods: charts.Methods, start: float) -> list[Any]:
    """Lines over the share of zeros, from the dense model on."""
    most = float(frame["sparsity"].max())
    place = {method: i - (len(methods.names) - 1) / 2 for i, method in enumerate(methods.names)}
    points = frame.assign(x=frame["sparsity"] + DODGE * most * frame["method"].map(place))
    dense = pd.DataFrame([{"method": method, "x": 0.0, "y": start} for method in dict.fromkeys(frame["method"])])
    scale = alt.Scale(domain=[0, max(most * 1.06, 0.1)], nice=False)
    x = alt.X("x:Q", title="share of weights set to zero", axis=alt.Axis(format="~%", tickCount=5), scale=scale)
    line = alt.Chart(pd.concat([dense, points[["method", "x", "y"]]])).mark_line(strokeWidth=1.5, clip=True)
    base = alt.Chart(points).encode(x=x, color=methods.colour)
    return [line.encode(x=x, y=y, color=methods.colour), *charts.with_intervals(base, y, methods)]


def _against_levels(frame: pd.DataFrame, y: alt.Y, methods: charts.Methods, start: float) -> list[Any]:
    """Points over named levels, mild to severe, methods side by side; the grid begins at `start`."""
    order = list(dict.fromkeys(frame.sort_values("order")["label"]))
    axis = alt.Axis(labelAngle=0, labelLimit=120, labelOverlap=False)
    x = alt.X("label:N", title=None, sort=order, axis=axis, scale=alt.Scale(padding=0.3))
    side = alt.XOffset("method:N", sort=[name for name in methods.names if (frame["method"] == name).any()])
    zero = alt.Chart(pd.DataFrame([{"y": start}])).mark_rule(color=charts.FAINT, opacity=0.6).encode(y="y:Q")
    base = alt.Chart(frame).encode(x=x, xOffset=side, color=methods.colour)
    return [zero, *charts.with_intervals(base, y, methods)]


def _control_figure(result: StudyResult, cells: pd.DataFrame) -> Figure:
    """Every recipe's loss over its rise in perplexity, a panel for each task."""
    margin = result.study["margin"]
    control = next(task["name"] for task in result.tasks if task["metric"] in CONTROL_METRICS)
    rise = cells.loc[cells["task"] == control, ["recipe", "y", "change", "verdict"]].assign(y=lambda f: f["y"] - 1)
    scores = cells[cells["metric"] == "score"]
    both = scores.merge(rise.rename(columns={"y": "x", "change": "perplexity", "verdict": "outcome"}), on="recipe")
    x, y, methods = charts.rise_axis(rise["y"], margin), charts.loss_axis(cells), charts.Methods.of(cells)
    tasks = [task["name"] for task in ordered_tasks(result) if (both["task"] == task["name"]).any()]
    panels = [_against_rise(both[both["task"] == task], x, y, methods, margin) for task in tasks]
    return Figure(
        name="perplexity-against-loss",
        title="What perplexity would have said",
        caption="Each point is a recipe: how much it loses, over how much perplexity rises. Left of the upright line "
        "perplexity stays within the margin; above the level line more than the margin is lost. The shaded corner is "
        "where knowledge is lost and perplexity does not tell; losses shown to be there are named.",
        chart=charts.themed(panels, columns=4 if len(panels) == 4 else 3),
    )


def _against_rise(frame: pd.DataFrame, x: alt.X, y: alt.Y, methods: charts.Methods, margin: float) -> alt.LayerChart:
    upright = alt.Chart(pd.DataFrame([{"x": margin}])).mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(x=x)
    corner = alt.Chart(pd.DataFrame([{"x": -1, "x2": margin, "y": margin, "y2": charts.HIGHEST_LOSS}]))
    shade = corner.mark_rect(clip=True, opacity=0.13, color="#d55e00").encode(x=x, x2="x2", y=y, y2="y2")
    base = alt.Chart(frame).encode(x=x, color=methods.colour)
    tips = (alt.Tooltip("perplexity:N"), alt.Tooltip("outcome:N", title="by perplexity"))
    hidden = list(
        frame.loc[frame["verdict"].str.endswith("not matching") & (frame["outcome"] == "within margin"), "recipe"]
    )
    names = ", ".join(hidden[:2]) + (f" and {len(hidden) - 2} more" if len(hidden) > 2 else "")
    said = f"hidden losses: {names}" if hidden else "no hidden loss is shown"
    title = alt.TitleParams(str(frame["task"].iloc[0]), subtitle=said)
    layers = [shade, upright, *charts.with_intervals(base, y, methods, *tips)]
    return charts.with_margin(layers, margin).properties(title=title)
