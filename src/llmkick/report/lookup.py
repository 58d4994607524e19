"""The entries of a study's result, found by what they are about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmkick.study.results.results import CONTROL_METRICS, StudyResult

# The paper's settings, in its order (arXiv 2310.01382, sections 3.1 to 3.3); perplexity is the control.
SETTINGS: Mapping[str, str] = {
    "knowledge": "Access to remaining knowledge",
    "synthesis": "Synthesis of given knowledge",
    "instruction": "Instruction following",
    "control": "Control",
}


def labels_of(result: StudyResult) -> list[str]:
    """What is compared with the dense model, in the study's order."""
    return result.labels


def is_control(task: Mapping[str, Any]) -> bool:
    """Whether a task is there for comparison and has no verdict."""
    return task["metric"] in CONTROL_METRICS


def task_comparisons(result: StudyResult) -> list[Mapping[str, Any]]:
    """The comparisons that carry a verdict."""
    return [entry for entry in result.comparisons if "verdict" in entry]


def perplexity_comparisons(result: StudyResult) -> list[Mapping[str, Any]]:
    """The comparisons of perplexity, which carry none."""
    return [entry for entry in result.comparisons if "outcome" in entry]


def comparisons_by_cell(result: StudyResult) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(recipe, task) → comparison of either sort."""
    return {(entry["recipe"], entry["task"]): entry for entry in result.comparisons}


def dense_scores(result: StudyResult) -> dict[str, float | None]:
    """Task → score of the dense model over all its scored items."""
    return {row["task"]: row["value"] for row in result.results if row["recipe"] == "dense"}


def ordered_tasks(result: StudyResult) -> list[Mapping[str, Any]]:
    """The tasks by the paper's settings, the control last, otherwise in the study's order."""
    order = list(SETTINGS)
    return sorted(result.tasks, key=lambda task: order.index(task["setting"]) if task["setting"] in order else -1)


def report_seed(report: Mapping[str, Any]) -> int | None:
    """The calibration seed of a compressed model; None for a method that uses no calibration."""
    return None if report["calibration"] is None else int(report["seed"])


def layer_place(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.experts.7.up_proj` → (3, "mlp.experts.*.up_proj")."""
    found = re.match(r"(?:.*?\.)?([0-9]+)\.(.+)", name)
    return (int(found[1]), re.sub(r"\b[0-9]+\b", "*", found[2])) if found else (None, name)
