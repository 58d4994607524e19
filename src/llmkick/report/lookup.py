"""Look-up of the entries of a study's result by recipe, task and kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmkick.paper import SETTINGS
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results.records import AnyComparison, TaskSummary
from llmkick.study.results.results import StudyResult


@dataclass(frozen=True, kw_only=True)
class JudgedLoss:
    """The loss that a verdict is about, as a share, and its interval."""

    share: float | None
    interval: tuple[float, float] | None


def judged_loss(comparison: Comparison) -> JudgedLoss:
    """The loss that a comparison's verdict is about: every table, figure and sentence takes it from here."""
    return JudgedLoss(share=comparison.relative_drop, interval=comparison.interval)


def task_comparisons(result: StudyResult) -> list[Comparison]:
    """The comparisons that carry a verdict."""
    return [comparison for comparison in result.comparisons if isinstance(comparison, Comparison)]


def perplexity_comparisons(result: StudyResult) -> list[PerplexityComparison]:
    """The perplexity comparisons, which carry no verdict."""
    return [comparison for comparison in result.comparisons if isinstance(comparison, PerplexityComparison)]


def comparisons_by_cell(result: StudyResult) -> dict[tuple[str, str], AnyComparison]:
    """(recipe, task) → its comparison, of a task or of perplexity."""
    return {(comparison.recipe, comparison.task): comparison for comparison in result.comparisons}


def verdict_or_outcome(comparison: AnyComparison) -> str:
    """The verdict of a task comparison, or the outcome of a perplexity comparison, which has no verdict."""
    return comparison.outcome if isinstance(comparison, PerplexityComparison) else comparison.verdict


def dense_scores(result: StudyResult) -> dict[str, float | None]:
    """Task → score of the dense model over all its scored items."""
    return {row.task: row.value for row in result.results if row.recipe == "dense"}


def ordered_tasks(result: StudyResult) -> list[TaskSummary]:
    """The tasks grouped by the paper's settings, with the control last; within a setting, in the study's order."""
    order = list(SETTINGS)
    return sorted(result.tasks, key=lambda task: order.index(task.setting) if task.setting in order else -1)


def control_name(result: StudyResult) -> str:
    """What the control measures: "perplexity", or "bits per byte" where the models split text differently."""
    metric = next((task.metric for task in result.tasks if task.is_control), "")
    return "bits per byte" if metric == "bits_per_byte" else "perplexity"


def layer_place(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.experts.7.up_proj` → (3, "mlp.experts.*.up_proj")."""
    match = re.match(r"(?:.*?\.)?([0-9]+)\.(.+)", name)
    return (int(match[1]), re.sub(r"\b[0-9]+\b", "*", match[2])) if match else (None, name)
