"""Figures of closed-book against open-book scores: lost knowledge against lost reading ability."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer, Panel, Spec
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.levels import DODGE, LABEL_WIDTH, SAVED
from llmkick.report.figures.methods import Methods
from llmkick.report.level_axes import KINDS
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.results import StudyResult

CLOSED, OPEN = ":closed", ":open"
# What both tasks of a figure have in common, beside their levels on the axes of the study.
SHARED = ("source", "data", "limit", "seed")


def book_figures(result: StudyResult, cells: pd.DataFrame) -> list[Figure]:
    """One figure for each task asked with and without its passage: both scores of every recipe."""
    asked = set(cells["task"])
    figures: dict[str, Figure] = {}
    for closed, opened in book_pairs(result.tasks):
        if {closed.name, opened.name} <= asked:
            figure = _figure(result, cells, closed, opened)
            # Names of other letters than those of file names may become the same.
            name = figure.name if figure.name not in figures else f"{figure.name}-{len(figures) + 1}"
            figures[name] = replace(figure, name=name)
    return list(figures.values())


def book_pairs(tasks: Sequence[TaskSummary]) -> list[tuple[TaskSummary, TaskSummary]]:
    """The same questions from memory and with their passage, whatever the study calls the two tasks."""
    opened = [task for task in tasks if _kind(task).endswith(OPEN)]
    pairs = []
    for closed in tasks:
        found = next((task for task in opened if _questions(task) == _questions(closed)), None)
        if _kind(closed).endswith(CLOSED) and found is not None:
            opened.remove(found)
            pairs.append((closed, found))
    return pairs


def _kind(task: TaskSummary) -> str:
    """The name of a task in the registry."""
    return task.task or task.name


def _questions(task: TaskSummary) -> tuple[object, ...]:
    """What determines the questions of a task."""
    base = _kind(task).removesuffix(CLOSED).removesuffix(OPEN)
    return base, sorted(task.axes.items()), [getattr(task, name, None) for name in SHARED]


def _figure(result: StudyResult, cells: pd.DataFrame, closed: TaskSummary, opened: TaskSummary) -> Figure:
    base = closed.name.removesuffix(CLOSED)
    if opened.name.removesuffix(OPEN) != base:
        base = f"{closed.name} and {opened.name}"
    frame = cells[cells["task"].isin([closed.name, opened.name])]
    books = {closed.name: "closed book", opened.name: "open book"}
    frame = frame.assign(book=[books[task] for task in frame["task"]])
    methods = Methods.of(result, frame)
    y = charts.score_axis(frame)
    panels = []
    for kind in KINDS:
        panel = frame[frame["kind"] == kind]
        if not panel.empty:
            dense = panel.groupby("book")["dense"].first()
            said = ", ".join(f"dense {formatting.score(value)} {book}" for book, value in dense.items())
            title = alt.TitleParams(KINDS[kind], subtitle=said)
            lines = [charts.level_line(float(value), dotted=book == "closed book") for book, value in dense.items()]
            panels.append(
                Panel(layers=[*lines, *_pairs(panel, kind, y, methods)], title=title, width=260, height=charts.HEIGHT)
            )
    labels = max(cells.loc[cells["kind"] != "sparsity", "label"].nunique(), 4)
    return Figure(
        name=f"closed-open-{re.sub(r'[^a-zA-Z0-9_.]+', '-', base).strip('-')}",
        title=f"Closed against open book: {base}",
        caption="Hollow: from memory alone. Filled: with the passage to read. The level lines are the dense "
        "model's two scores (dotted: closed book). Where a recipe loses the lower and keeps the upper, what is gone is "
        "knowledge, not reading.",
        chart=charts.themed(panels, columns=3, minimum=min(260, LABEL_WIDTH * labels)),
        rows=frame[list(SAVED)],
    )


def _pairs(frame: pd.DataFrame, kind: str, y: alt.Y, methods: Methods) -> list[Layer]:
    """The two scores of each recipe, joined by a line."""
    if kind == "sparsity":
        most = float(frame["sparsity"].max())
        place = {method: i - (len(methods.names) - 1) / 2 for i, method in enumerate(methods.names)}
        frame = frame.assign(x=frame["sparsity"] + DODGE * most * frame["method"].map(place))
        scale = alt.Scale(domain=[0, max(most * 1.06, 0.1)], nice=False)
        axis = alt.Axis(format="~%", tickCount=5)
        encoding: Spec = {"x": alt.X("x:Q", title="share of weights set to zero", axis=axis, scale=scale)}
    else:
        x, side = charts.level_axis(frame, methods)
        encoding = {"x": x, "xOffset": side}
    wide = frame.pivot_table(
        index=[name for name in ("recipe", "method", "label", "order", "x") if name in frame],
        columns="book", values="y", aggfunc="first",
    ).reset_index().rename(columns={"closed book": "y", "open book": "y2"}).dropna()  # fmt: skip
    point = alt.Chart(frame).encode(
        y=y, color=methods.colour, shape=methods.shape, tooltip=list(charts.TIPS), **encoding
    )
    rule = (
        alt.Chart(wide)
        .mark_rule(strokeWidth=1.5, opacity=0.6)
        .encode(y=y, y2=alt.Y2("y2"), color=methods.colour, **encoding)
    )
    return [
        rule,
        point.transform_filter("datum.book == 'open book'").mark_point(filled=True, size=55, opacity=1),
        point.transform_filter("datum.book == 'closed book'").mark_point(filled=False, size=50, opacity=1),
    ]
