"""Figures of scores against the compression level, as in the paper, and of losses against perplexity."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import altair as alt
import pandas as pd

from llmkick.compression.levels import LevelKind
from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer, Panel
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.methods import Methods
from llmkick.report.level_axes import KINDS
from llmkick.report.lookup import (
    comparisons_by_cell,
    control_name,
    dense_scores,
    judged_loss,
    ordered_tasks,
    task_comparisons,
)
from llmkick.report.payload import Payload
from llmkick.statistics import Comparison, PerplexityComparison, Verdict
from llmkick.study.results.records import AnyComparison, ResultRow, TaskSummary
from llmkick.study.results.results import StudyResult

DODGE = 0.014  # as a share of the axis: the offset between methods at the same level
LABEL_WIDTH = 46  # pixels for the name of a level, such as 4b-g128
NAMES: Mapping[LevelKind, str] = {"sparsity": "sparsity", "n:m": "n-m"}
TITLES: Mapping[LevelKind, str] = {
    "sparsity": "Score against sparsity",
    "n:m": "Score at N:M patterns",
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
    """One row for each recipe × task: its position on the axes, its numbers, and its tooltip texts."""
    levels = {comparison.recipe: result.level(comparison.recipe) for comparison in result.comparisons}
    order = sorted(levels, key=lambda recipe: levels[recipe].severity)
    whole = {row.task: row for row in result.results if row.recipe == "dense"}
    rows = []
    for (recipe, task), comparison in comparisons_by_cell(result).items():
        level = levels[recipe]
        place = (recipe, task, order.index(recipe), level.method, level.kind, level.label, level.sparsity)
        rows.append({**dict(zip(PLACE, place, strict=True)), **_height(comparison, whole.get(task))})
    frame = pd.DataFrame(rows, columns=[*PLACE, *HEIGHT])
    numbers = ["sparsity", "y", "low", "high", "loss", "loss_low", "loss_high", "dense", "chance"]
    frame[numbers] = frame[numbers].astype(float)
    return frame[frame["y"].notna()]


def _height(comparison: AnyComparison, whole: ResultRow | None) -> Payload:
    """The score with the interval of its loss, or perplexity over that of the dense model.

    whole: the dense score on all items.
    """
    values = _control_height(comparison) if comparison.kind == "perplexity" else _score_height(comparison, whole)
    return dict(zip(HEIGHT, values, strict=True))


def _control_height(comparison: PerplexityComparison) -> tuple[object, ...]:
    change, bounds = comparison.relative_increase, comparison.interval
    low, high = [1 + bound for bound in bounds or ()] or (None, None)
    texts = (formatting.score(comparison.compressed, "perplexity"), str(formatting.increase(comparison)))
    loss = (change, *(bounds or (None, None)))
    return "perplexity", 1 + change, low, high, *loss, *texts, comparison.outcome, comparison.dense, 0.0


def _score_height(comparison: Comparison, whole: ResultRow | None) -> tuple[object, ...]:
    """A model that was asked fewer items than the dense one is placed by its loss: its score is that of other items."""
    verdict, dense, chance = comparison.verdict, comparison.dense, comparison.chance
    silent, judged = verdict == "no signal", judged_loss(comparison)
    is_asked_less = _is_asked_less(comparison, whole)
    if is_asked_less and whole is not None:
        dense = whole.value
    bounds = None if silent else judged.interval
    low, high, place = None, None, comparison.compressed
    if dense is not None and bounds is not None:
        low, high = (chance + (dense - chance) * (1 - bound) for bound in reversed(bounds))
    if is_asked_less and dense is not None and judged.share is not None and not silent:
        place = chance + (dense - chance) * (1 - judged.share)
    loss = (None if silent else judged.share, *(bounds or (None, None)))
    texts = (formatting.score(comparison.compressed), formatting.loss_sentence(comparison) or formatting.NOTHING)
    sign = f"{formatting.mark(verdict).symbol} {verdict}"
    return "score", place, low, high, *loss, *texts, sign, dense, chance


def level_figures(result: StudyResult, cells: pd.DataFrame) -> list[Figure]:
    """One figure for each kind of level that the study has."""
    return [
        _level_figure(result, cells[cells["kind"] == kind], kind) for kind in KINDS if (cells["kind"] == kind).any()
    ]


def _level_figure(result: StudyResult, cells: pd.DataFrame, kind: LevelKind) -> Figure:
    """One kind of level: a panel for every task, perplexity last."""
    methods, panels = Methods.of(result, cells), []
    for task in ordered_tasks(result):
        panel = cells[cells["task"] == task.name]
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


def _panel(result: StudyResult, task: TaskSummary, panel: pd.DataFrame, kind: LevelKind, methods: Methods) -> Panel:
    control = task.is_control
    dense = dense_scores(result).get(task.name)
    start = 1.0 if control else float(panel["dense"].iloc[0])
    y = _axis(result, task, panel)
    if kind == "sparsity":
        layers = against_sparsity(panel, y, methods, start)
    elif control:
        layers = against_levels(panel, y, methods, start)
    else:
        layers = charts.bars(panel, y, methods, start)
    margin = result.study.margin
    chance = float(panel["chance"].iloc[0])
    limit = start + margin if control else chance + (start - chance) * (1 - margin)
    silent = any((recipe, task.name) in _cells_with(result, "no signal") for recipe in panel["recipe"])
    said = f"dense {formatting.score(dense, task.metric)}" + (f", chance {chance:g}" if chance else "")
    title = alt.TitleParams(task.name, subtitle=said + (": no signal" if silent else ""))
    marks = [charts.level_line(chance, dotted=True)] if chance else []
    return charts.with_margin([*marks, *layers], limit, title=title)


def _axis(result: StudyResult, task: TaskSummary, panel: pd.DataFrame) -> alt.Y:
    return charts.ratio_axis(panel, control_name(result)) if task.is_control else charts.score_axis(panel)


def _caption(result: StudyResult, cells: pd.DataFrame, kind: LevelKind) -> str:
    margin = formatting.setting(result.study.margin)
    sentences = [
        f"Scores with the interval of their loss; the dashed line is the dense score less the margin of {margin}."
    ]
    if kind != "sparsity":
        sentences.append("The full line is the dense score.")
    if _some_are_asked_less(result, cells):
        sentences.append("A model that was asked fewer questions is placed by its loss on them.")
    if (cells["chance"] > 0).any():
        sentences.append("The dotted line is what guessing gives.")
    if "perplexity" in set(cells["metric"]):
        control = control_name(result).capitalize()
        sentences.append(f"{control}, the control, comes last: over that of the dense model, where more is worse.")
    drawn = [(task, cells[cells["task"] == task.name]) for task in ordered_tasks(result)]
    if any(charts.cut_note(of, _axis(result, task, of)["scale"]) for task, of in drawn if not of.empty):
        sentences.append(charts.CUT.strip())
    shown = set(zip(cells["recipe"], cells["task"], strict=True)) & _cells_with(result, "no signal")
    silent = [task.name for task in ordered_tasks(result) if task.name in {task_name for _, task_name in shown}]
    if silent:
        sentences.append(f"Without a signal, so nothing can be lost: {formatting.listed(silent)}.")
    return " ".join(sentences)


def against_sparsity(frame: pd.DataFrame, y: alt.Y, methods: Methods, start: float) -> list[Layer]:
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


def against_levels(frame: pd.DataFrame, y: alt.Y, methods: Methods, start: float) -> list[Layer]:
    """Points over named levels, mild to severe, methods side by side; the grid begins at `start`."""
    x, side = charts.level_axis(frame, methods)
    base = alt.Chart(frame).encode(x=x, xOffset=side, color=methods.colour)
    return [charts.level_line(start), *charts.with_intervals(base, y, methods)]


def control_figure(result: StudyResult, cells: pd.DataFrame) -> Figure:
    """Every recipe's loss over its rise in perplexity, a panel for each task."""
    margin = result.study.margin
    control = next(task.name for task in result.tasks if task.is_control)
    rise = cells.loc[cells["task"] == control, ["recipe", "loss", "change", "verdict"]]
    lost = cells[(cells["metric"] == "score") & cells["loss"].notna()]
    lost = lost.assign(y=lost["loss"], low=lost["loss_low"], high=lost["loss_high"])
    renamed = rise.rename(columns={"loss": "rise", "change": "perplexity", "verdict": "outcome"})
    both = lost.merge(renamed, on="recipe")
    name = control_name(result)
    (x, _, _), y, methods = (
        charts.rise_axis(rise["loss"], margin, name),
        charts.loss_axis(lost),
        Methods.of(result, cells),
    )
    tasks = [task.name for task in ordered_tasks(result) if (both["task"] == task.name).any()]
    lost_cells = _cells_with(result, "not matching")
    panels = [
        _against_rise(
            both[both["task"] == task],
            x,
            y,
            methods,
            margin,
            lost={recipe for recipe, of in lost_cells if of == task},
            control=name,
        )
        for task in tasks
    ]
    saved = both[["task", "recipe", "rise", "y", "low", "high", "verdict", "outcome"]]
    return Figure(
        name="perplexity-against-loss",
        title=f"What {name} would have said",
        caption=f"Each point is a recipe: how much it loses, over how much {name} rises. Left of the upright line "
        f"{name} stays within the margin; above the level line more than the margin is lost. The shaded corner is "
        f"where knowledge is lost and {name} does not tell; losses shown to be there are named."
        + charts.cut_note(both, y["scale"]),
        chart=charts.themed(panels, columns=4 if len(panels) == 4 else 3),
        rows=saved.rename(columns={"y": "loss", "low": "loss_low", "high": "loss_high"}),
    )


def _is_asked_less(entry: Comparison, whole: ResultRow | None) -> bool:
    """Whether a model was asked fewer items than the dense one, whose row is `whole`."""
    return whole is not None and entry.n + entry.unscored < whole.n + whole.unscored


def _some_are_asked_less(result: StudyResult, cells: pd.DataFrame) -> bool:
    whole = {row.task: row for row in result.results if row.recipe == "dense"}
    shown = set(zip(cells["recipe"], cells["task"], strict=True))
    return any(
        _is_asked_less(entry, whole.get(entry.task))
        for entry in task_comparisons(result)
        if (entry.recipe, entry.task) in shown and entry.verdict != "no signal"
    )


def _cells_with(result: StudyResult, verdict: Verdict) -> set[tuple[str, str]]:
    """(recipe, task) of every comparison with a verdict."""
    return {(entry.recipe, entry.task) for entry in task_comparisons(result) if entry.verdict == verdict}


def _against_rise(
    frame: pd.DataFrame,
    x: alt.X,
    y: alt.Y,
    methods: Methods,
    margin: float,
    *,
    lost: Collection[str],
    control: str,
) -> Panel:
    """One task; `lost` are the recipes with a proven loss above the margin, `control` is what rises."""
    upright = alt.Chart(pd.DataFrame([{"rise": margin}])).mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(x=x)
    corner = alt.Chart(pd.DataFrame([{"rise": -1, "x2": margin, "y": margin, "y2": y["scale"]["domain"][1]}]))
    shade = corner.mark_rect(clip=True, opacity=0.13, color="#d55e00").encode(
        x=x, x2=alt.X2("x2"), y=y, y2=alt.Y2("y2")
    )
    base = alt.Chart(frame).encode(x=x, color=methods.colour)
    tips = (alt.Tooltip("perplexity:N", title=control), alt.Tooltip("outcome:N", title=f"by {control}"))
    hidden = list(frame.loc[frame["recipe"].isin(list(lost)) & (frame["outcome"] == "within margin"), "recipe"])
    names = ", ".join(hidden[:2]) + (f" and {len(hidden) - 2} more" if len(hidden) > 2 else "")
    said = f"hidden losses: {names}" if hidden else "no hidden loss is shown"
    title = alt.TitleParams(str(frame["task"].iloc[0]), subtitle=said)
    layers = [shade, upright, *charts.with_intervals(base, y, methods, *tips)]
    return charts.with_margin(layers, margin, title=title)
