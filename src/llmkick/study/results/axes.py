"""The axes of a study in its results: which level each compressed model and each task is."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.study.results.comparisons import describe_task
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.variants import VariantRow
from llmkick.study.spec.axes import Axes
from llmkick.study.spec.study import Study
from llmkick.tasks.task import Task


def summaries_of(study: Study, tasks: Sequence[Task], prompting: str) -> list[TaskSummary]:
    """Return the entries of a study's tasks in results.json, with the levels of their axes."""
    axes = [level.axes for level in study.task_levels()]
    summaries = [describe_task(task, prompting) for task in tasks]
    return [with_axes(summary, level) for summary, level in zip(summaries, axes, strict=True)]


def with_axes(summary: TaskSummary, axes: Axes) -> TaskSummary:
    """Return the entry of a task with the levels of its axes, if it has axes."""
    return TaskSummary.model_validate({**summary.facts, "axes": dict(axes)}) if axes else summary


def variant_rows(study: Study) -> tuple[VariantRow, ...]:
    """Return a row for each recipe and level if the study has an axis of calibration, else nothing."""
    levels = study.recipe_levels()
    if not any(level.axes for level in levels):
        return ()
    return tuple(VariantRow(label=level.label, recipe=str(level.recipe), axes=dict(level.axes)) for level in levels)
