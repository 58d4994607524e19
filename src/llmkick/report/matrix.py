"""The verdict matrix: recipes × tasks, as texts for the page, the exports and pages of several studies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from llmkick.paper import SETTINGS
from llmkick.report import formatting
from llmkick.report.lookup import (
    comparisons_by_cell,
    dense_scores,
    ordered_tasks,
)
from llmkick.report.payload import Payload
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results.records import ResultRow, TaskSummary
from llmkick.study.results.results import StudyResult


@dataclass(frozen=True, kw_only=True)
class VerdictText:
    """A verdict, its sign, and its class in the page's style sheet."""

    verdict: str
    symbol: str
    css: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe on one task, as texts; `title` is the tooltip."""

    score: str
    change: str
    interval: str
    title: str


@dataclass(frozen=True, kw_only=True)
class ControlCell(Cell):
    """A cell of perplexity, which has an outcome and no verdict."""

    outcome: str
    control: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class TaskCell(Cell, VerdictText):
    """A cell with a verdict, and the verdict of the paper's rule."""

    recipe: str
    task: str
    paper: str | None
    paper_symbol: str
    control: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recipe on every task; `rounded` is true if it rounds weights that were already rounded."""

    recipe: str
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
        tasks=[Column(name=task.name, asked=_asked(dense.get(task.name))) for task in tasks],
        dense=[formatting.score(scores.get(task.name), task.metric) for task in tasks],
        rows=[
            Row(
                recipe=recipe,
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


def legend() -> list[Payload]:
    """The meaning of each verdict."""
    return [{**vars(verdict_text(verdict)), "meaning": mark.meaning} for verdict, mark in formatting.VERDICTS.items()]


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
        title="a window has no score, or none that is finite",
    )


def _control_cell(entry: PerplexityComparison) -> ControlCell:
    increase = formatting.increase(entry)
    return ControlCell(
        outcome=entry.outcome,
        score=formatting.score(entry.compressed, "perplexity"),
        change=increase.value,
        interval=increase.interval,
        title="; ".join(entry.notes),
    )


def _task_cell(entry: Comparison) -> TaskCell:
    loss, paper = formatting.loss(entry), entry.paper_verdict
    return TaskCell(
        **vars(verdict_text(entry.verdict)),
        recipe=entry.recipe,
        task=entry.task,
        score=formatting.score(entry.compressed),
        change=loss.value,
        interval=loss.interval + (f" of n = {entry.n}" if entry.unscored else ""),
        paper=paper,
        paper_symbol=formatting.mark(paper).symbol if paper else formatting.NOTHING,
        title=_title(entry),
    )


def _title(entry: Comparison) -> str:
    """The tooltip of a cell."""
    parts = [
        f"{formatting.counted(entry.n, 'item')}: {entry.lost:g} lost, {entry.gained:g} gained",
        f"McNemar p = {formatting.p_value(entry.mcnemar_p)}" if entry.mcnemar_p is not None else "",
        f"a loss of {formatting.percent(entry.smallest_detectable_loss)} would usually show"
        if entry.smallest_detectable_loss is not None
        else "",
        *entry.notes,
    ]
    return "; ".join(part for part in parts if part)


def verdict_text(verdict: str) -> VerdictText:
    """A verdict with its sign and its class."""
    return VerdictText(verdict=verdict, symbol=formatting.mark(verdict).symbol, css=verdict.replace(" ", "-"))


def _asked(row: ResultRow | None) -> str:
    return "" if row is None else f"n = {row.n + row.unscored}"
