"""The verdict matrix: recipes × tasks, as texts for the page, the exports and pages of several studies."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from llmkick.paper import SETTINGS
from llmkick.report import formatting
from llmkick.report.lookup import (
    comparisons_by_cell,
    dense_scores,
    judged_loss,
    ordered_tasks,
)
from llmkick.report.payload import Payload
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results.records import ResultRow, TaskSummary
from llmkick.study.results.results import StudyResult

# The bounds between the steps of the colour scale of losses, in margins.
LOSS_STEPS = (0.5, 1, 2, 4, 8, 12, 16)


@dataclass(frozen=True, kw_only=True)
class VerdictText:
    """A verdict, its sign, and its class in the page's style sheet."""

    verdict: str
    symbol: str
    css: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe on one task, as texts.

    `number` is what a narrow cell shows, `value` what it is sorted by, and `details` are the lines that are shown for
    a cell on demand.
    """

    score: str
    change: str
    interval: str
    number: str
    value: float | None
    details: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ControlCell(Cell):
    """A cell of perplexity, which has an outcome and no verdict. Its number is a factor: a rise is not a gain."""

    outcome: str
    control: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class TaskCell(Cell, VerdictText):
    """A cell with a verdict; `step` is the place of its loss on the colour scale, see `loss_step`."""

    recipe: str
    task: str
    step: str
    control: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe on every task; `rounded` is true if it rounds weights that were already rounded."""

    recipe: str
    method: str
    rounded: bool
    overall: VerdictText | None
    cells: list[ControlCell | TaskCell | None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the paper's settings: the heading above the columns of its tasks."""

    title: str
    span: int


@dataclass(frozen=True, kw_only=True)
class Column:
    """One task; `asked` is the number of items that the dense model was asked."""

    name: str
    asked: str
    control: bool


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Recipes × tasks, with the tasks grouped by the paper's settings; `dense` holds the dense model's scores."""

    settings: list[Setting]
    tasks: list[Column]
    dense: list[str]
    rows: list[Row]


def matrix(result: StudyResult) -> Matrix:
    """Recipes × tasks, with the tasks grouped by the paper's settings."""
    tasks, scores = ordered_tasks(result), dense_scores(result)
    overall = {row.recipe: verdict_text(row.verdict) for row in result.overall}
    dense = {row.task: row for row in result.results if row.recipe == "dense"}
    settings = [(key, len(list(group))) for key, group in groupby(tasks, key=lambda task: task.setting)]
    return Matrix(
        settings=[Setting(title=SETTINGS.get(key, key), span=span) for key, span in settings],
        tasks=[Column(name=task.name, asked=_asked(dense.get(task.name)), control=task.is_control) for task in tasks],
        dense=[formatting.score(scores.get(task.name), task.metric) for task in tasks],
        rows=[
            Row(
                recipe=recipe,
                method=result.level(recipe).method,
                rounded=is_rounded_twice(result, recipe),
                overall=overall.get(recipe),
                cells=[_cell(result, recipe, task) for task in tasks],
            )
            for recipe in result.labels
        ],
    )


def is_rounded_twice(result: StudyResult, recipe: str) -> bool:
    """Whether the recipe rounds weights that were already rounded in the source model."""
    return result.model.source_precision != "float" and result.level(recipe).kind in ("bits", "combined")


def legend(tables: Iterable[Matrix]) -> list[Payload]:
    """The meaning of each verdict that occurs."""
    rows = [row for table in tables for row in table.rows]
    cells = {cell.verdict for row in rows for cell in row.cells if isinstance(cell, TaskCell)}
    present = cells | {row.overall.verdict for row in rows if row.overall is not None}
    return [
        {**vars(verdict_text(verdict)), "meaning": mark.legend}
        for verdict, mark in formatting.VERDICTS.items()
        if verdict in present
    ]


def _cell(result: StudyResult, recipe: str, task: TaskSummary) -> ControlCell | TaskCell | None:
    comparison = comparisons_by_cell(result).get((recipe, task.name))
    if comparison is None:
        return _uncompared(result, recipe, task)
    return _control_cell(comparison) if isinstance(comparison, PerplexityComparison) else _task_cell(comparison)


def _uncompared(result: StudyResult, recipe: str, task: TaskSummary) -> ControlCell | None:
    """A measured perplexity that cannot be compared with the dense one: the scored windows differ."""
    rows = [row for row in result.results if (row.recipe, row.task) == (recipe, task.name)]
    if not rows or not task.is_control:
        return None
    return ControlCell(
        outcome="not comparable",
        score=formatting.score(rows[0].value, "perplexity"),
        change="",
        interval="",
        number=formatting.NOTHING,
        value=None,
        details=(f"{recipe} on {task.name}", "not comparable", "a window has no score, or none that is finite"),
    )


def _control_cell(entry: PerplexityComparison) -> ControlCell:
    increase, dense = formatting.increase(entry), formatting.score(entry.dense, "perplexity")
    score = formatting.score(entry.compressed, "perplexity")
    return ControlCell(
        outcome=entry.outcome,
        score=score,
        change=increase.value,
        interval=increase.interval,
        number=formatting.factor(1 + entry.relative_increase),
        value=entry.relative_increase,
        details=(
            f"{entry.recipe} on {entry.task}",
            f"{entry.outcome}: the control, without a verdict",
            f"{increase.value} ({formatting.interval_name(entry.alpha)} {increase.interval})"
            if increase.interval
            else increase.value,
            f"{score}, dense {dense}, on {formatting.counted(entry.n, 'window')}",
            *entry.notes,
        ),
    )


def _task_cell(entry: Comparison) -> TaskCell:
    loss, judged = formatting.loss(entry), judged_loss(entry)
    silent = entry.verdict == "no signal"
    return TaskCell(
        **vars(verdict_text(entry.verdict)),
        recipe=entry.recipe,
        task=entry.task,
        score=formatting.score(entry.compressed),
        change=loss.value,
        interval=loss.interval + (f" of n = {entry.n}" if entry.unscored else ""),
        number="" if silent else formatting.loss_number(judged.share),
        value=None if silent else judged.share,
        step="" if silent else loss_step(judged.share, entry.margin),
        details=_details(entry),
    )


def loss_step(share: float | None, margin: float) -> str:
    """The place of a loss on the colour scale: "gain", or "loss-0" (half the margin at most) to "loss-7"."""
    if share is None:
        return ""
    if share < -margin / 2:
        return "gain"
    return f"loss-{bisect.bisect_left([margin * step for step in LOSS_STEPS], share)}"


def _details(entry: Comparison) -> tuple[str, ...]:
    """What a cell says on demand: the cell, its verdict, the loss with its bounds, the items, and the paper's rule."""
    judged, p = judged_loss(entry), formatting.p_value(entry.mcnemar_p)
    silent, mark = entry.verdict == "no signal", formatting.mark(entry.verdict)
    named = formatting.interval_name(entry.alpha)
    return tuple(
        filter(
            None,
            (
                f"{entry.recipe} on {entry.task}",
                f"{mark.symbol} {entry.verdict}: {mark.meaning}",
                formatting.loss_words(judged.share).capitalize() if judged.share is not None and not silent else "",
                f"{named.capitalize()}: {formatting.loss_range(judged.interval)}"
                if judged.interval is not None and not silent
                else "",
                f"Score {formatting.score(entry.compressed)}, dense {formatting.score(entry.dense)}",
                f"{formatting.counted(entry.n, 'item')}: {entry.lost:g} lost, {entry.gained:g} gained"
                + (f" (McNemar p {p if p.startswith('<') else f'= {p}'})" if entry.mcnemar_p is not None else ""),
                f"The paper's rule, without bounds: {entry.paper_verdict}" if entry.paper_verdict else "",
                f"A loss of {formatting.percent(entry.smallest_detectable_loss)} would usually show"
                if entry.smallest_detectable_loss is not None
                else "",
                *entry.notes,
            ),
        )
    )


def verdict_text(verdict: str) -> VerdictText:
    """A verdict with its sign and its class."""
    return VerdictText(verdict=verdict, symbol=formatting.mark(verdict).symbol, css=verdict.replace(" ", "-"))


def _asked(row: ResultRow | None) -> str:
    return "" if row is None else f"n = {row.n + row.unscored}"
