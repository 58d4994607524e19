"""Scores against the level of compression, as the paper draws them, and losses against perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.figure import Figure
from llmkick.report.level_axes import KINDS, level_of
from llmkick.report.lookup import comparisons_by_cell, dense_scores, is_control, ordered_tasks
from llmkick.study.results.results import StudyResult

DODGE = 0.014  # of the axis: levels that methods share are drawn side by side
LABEL_WIDTH = 46  # pixels that a level's name needs, as 4b-g128
NAMES = {"sparsity": "sparsity", "nm": "n-m"}
TITLES = {
    "sparsity": "Score against sparsity",
    "nm": "Score at N:M patterns",
    "bits": "Score after rounding",
    "combined": "Score of what was pruned and rounded",
    "other": "Score of other recipes",
}
PLACE = ("recipe", "task", "order", "method", "kind", "label", "sparsity")
# `y` is what the level figures draw, a score or perplexity over that of the dense model; `loss` what the control does.
HEIGHT = (
    "metric", "y", "low", "high", "loss", "loss_low", "loss_high", "value", "change", "verdict", "dense", "chance",
)  # fmt: skip
SAVED = (
    "task", "recipe", "method", "label", "metric", "dense", "y", "low", "high", "loss", "loss_low", "loss_high",
    "verdict",
)  # fmt: skip


def cells_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × task: its place on the axes, its numbers, the texts of its tooltip."""
    levels = {entry["recipe"]: level_of(entry["recipe"]) for entry in result.comparisons}
    order = sorted(levels, key=lambda recipe: levels[recipe].severity)
    rows = []
    for (recipe, task), entry in comparisons_by_cell(result).items():
        level = levels[recipe]
        place = (recipe, task, order.index(recipe), level.method, level.kind, level.label, level.sparsity)
        rows.append({**dict(zip(PLACE, place, strict=True)), **_height(entry)})
    frame = pd.DataFrame(rows, columns=[*PLACE, *HEIGHT])
    numbers = ["sparsity", "y", "low", "high", "loss", "loss_low", "loss_high", "dense", "chance"]
    frame[numbers] = frame[numbers].astype(float)
    return frame[frame["y"].notna()]


def _height(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The score with the interval of its loss, or perplexity over that of the dense model."""
    control = "outcome" in entry
    change = entry["relative_increase"] if control else entry["relative_drop"]
    silent = not control and entry["verdict"] == "no signal"
    bounds = None if silent else entry["interval"]
    dense = entry["dense"]
    if control:
        y = None if change is None else 1 + change
        low, high = [1 + bound for bound in bounds or ()] or (None, None)
        value, words, verdict = (
            formatting.score(entry["compressed"], "perplexity"),
            formatting.increase(entry),
            entry["outcome"],
        )
    else:
        y = entry["compressed"]
        low, high = [dense * (1 - bound) for bound in reversed(bounds or ())] or (None, None)
        value, words = formatting.score(y), formatting.loss(entry)
        verdict = f"{formatting.mark(entry['verdict']).symbol} {entry['verdict']}"
    loss = (None if silent else change, *(bounds or (None, None)))
    texts = (value, words, verdict, dense, 0.0 if control else entry["chance"])
    return dict(zip(HEIGHT, ("perplexity" if control else "score", y, low, high, *loss, *texts), strict=True))


def level_figures(result: StudyResult, cells: pd.DataFrame) -> list[Figure]:
    """One figure for each kind of level that the study has."""
    return [
        _level_figure(result, cells[cells["kind"] == kind], kind) for kind in KINDS if (cells["kind"] == kind).any()
    ]


def _level_figure(result: StudyResult, cells: pd.DataFrame, kind: str) -> Figure:
    """One kind of level: a panel for every task, perplexity last."""
    methods, panels = charts.Methods.of(cells), []
    for task in ordered_tasks(result):
        panel = cells[cells["task"] == task["name"]]
        if not panel.empty:
            panels.append(_panel(result, task, panel, kind, methods))
    few = kind != "sparsity" and cells["label"].nunique() * LABEL_WIDTH < 100
    width = 170 if kind == "sparsity" else max(80, LABEL_WIDTH * cells["label"].nunique())
    return Figure(
        name=NAMES.get(kind, kind),
        title=TITLES[kind],
        caption=_caption(result, cells, kind),
        chart=charts.themed(panels, columns=6 if few else 3, minimum=width),
        rows=cells[list(SAVED)],
    )


def _panel(
    result: StudyResult, task: Mapping[str, Any], panel: pd.DataFrame, kind: str, methods: charts.Methods
) -> alt.LayerChart:
    control = is_control(task)
    dense = dense_scores(result).get(task["name"])
    start = 1.0 if control else float(panel["dense"].iloc[0])
    y = charts.ratio_axis(panel) if control else charts.score_axis(panel)
    if kind == "sparsity":
        layers = against_sparsity(panel, y, methods, start)
    elif control:
        layers = against_levels(panel, y, methods, start)
    else:
        layers = charts.bars(panel, y, methods, start)
    margin = result.study["margin"]
    chance = float(panel["chance"].iloc[0])
    limit = start + margin if control else start * (1 - margin)
    silent = bool(panel["verdict"].str.endswith("no signal").any())
    said = f"dense {formatting.score(dense, task['metric'])}" + (f", chance {chance:g}" if chance else "")
    title = alt.TitleParams(task["name"], subtitle=said + (": no signal" if silent else ""))
    marks = [charts.level_line(chance, dotted=True)] if chance else []
    return charts.with_margin([*marks, *layers], limit).properties(title=title)


def _caption(result: StudyResult, cells: pd.DataFrame, kind: str) -> str:
    margin = formatting.setting(result.study["margin"])
    sentences = [
        f"Scores with the interval of their loss; the dashed line is the dense score less the margin of {margin}."
    ]
    if kind != "sparsity":
        sentences.append("The full line is the dense score.")
    if (cells["chance"] > 0).any():
        sentences.append("The dotted line is what guessing gives.")
    if "perplexity" in set(cells["metric"]):
        sentences.append("Perplexity, the control, comes last: over that of the dense model, where more is worse.")
    if (cells["high"] > cells.groupby("task")["y"].transform("max").combine(cells["dense"], max) * 1.15).any():
        sentences.append("Intervals are cut at the end of the axis.")
    silent = [
        task["name"]
        for task in ordered_tasks(result)
        if cells.loc[cells["task"] == task["name"], "verdict"].str.endswith("no signal").any()
    ]
    if silent:
        sentences.append(f"Without a signal, so nothing can be lost: {formatting.listed(silent)}.")
    return " ".join(sentences)


def against_sparsity(frame: pd.DataFrame, y: alt.Y, methods: charts.Methods, start: float) -> list[Any]:
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


def against_levels(frame: pd.DataFrame, y: alt.Y, methods: charts.Methods, start: float) -> list[Any]:
    """Points over named levels, mild to severe, methods side by side; the grid begins at `start`."""
    x, side = charts.level_axis(frame, methods)
    base = alt.Chart(frame).encode(x=x, xOffset=side, color=methods.colour)
    return [charts.level_line(start), *charts.with_intervals(base, y, methods)]


def control_figure(result: StudyResult, cells: pd.DataFrame) -> Figure:
    """Every recipe's loss over its rise in perplexity, a panel for each task."""
    margin = result.study["margin"]
    control = next(task["name"] for task in result.tasks if is_control(task))
    rise = cells.loc[cells["task"] == control, ["recipe", "loss", "change", "verdict"]]
    lost = cells[(cells["metric"] == "score") & cells["loss"].notna()]
    lost = lost.assign(y=lost["loss"], low=lost["loss_low"], high=lost["loss_high"])
    renamed = rise.rename(columns={"loss": "x", "change": "perplexity", "verdict": "outcome"})
    both = lost.merge(renamed, on="recipe")
    x, y, methods = charts.rise_axis(rise["loss"], margin), charts.loss_axis(lost), charts.Methods.of(cells)
    tasks = [task["name"] for task in ordered_tasks(result) if (both["task"] == task["name"]).any()]
    panels = [_against_rise(both[both["task"] == task], x, y, methods, margin) for task in tasks]
    cut = (both["low"] < charts.LOWEST_LOSS).any()
    saved = both[["task", "recipe", "x", "y", "low", "high", "verdict", "outcome"]]
    return Figure(
        name="perplexity-against-loss",
        title="What perplexity would have said",
        caption="Each point is a recipe: how much it loses, over how much perplexity rises. Left of the upright line "
        "perplexity stays within the margin; above the level line more than the margin is lost. The shaded corner is "
        "where knowledge is lost and perplexity does not tell; losses shown to be there are named."
        + (" Intervals are cut at the end of the axis." if cut else ""),
        chart=charts.themed(panels, columns=4 if len(panels) == 4 else 3),
        rows=saved.rename(columns={"x": "rise", "y": "loss", "low": "loss_low", "high": "loss_high"}),
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
