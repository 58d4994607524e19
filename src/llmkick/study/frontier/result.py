"""The result of a frontier search: the verdict on each level, as typed records and as frontier.json.

The content of `frontier.json`:

    {"schema": 1, "study": …, "settings": {"search_propagate", "seeds", "perplexity_margins"}, "environment", "timing",
     "model", "tasks": as in results.json,
     "frontiers": [{"name", "method", "kind", "task", "metric", "margin", "levels": mild → severe,
                    "strongest_matching", "weakest_not_matching": levels or null,
                    "verdicts": [{"level", "recipe", "verdict", "confirmed", "items", "of", "dense", "compressed",
                                  "loss", "interval"}], "order", "violations", "notes"}],
     "overall": [{"name", "method", "kind", "levels", "strongest_matching", "weakest_not_matching", "notes"}],
     "cost": [{"name", "task", "items", "full", "models", "levels"}], "warnings"}

Perplexity has separate frontiers, one for each of its margins. Its "matching" means that the increase is proven to be
within the margin. Perplexity has no effect on `overall`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from llmkick.compression.levels import LevelKind
from llmkick.compression.recipe import Recipe
from llmkick.statistics import Comparison, Frontier, PerplexityComparison, Verdict
from llmkick.study.levels import LevelGrid, level_text
from llmkick.study.results.records import DenseModel, Environment, OpenRecord, TaskSummary, Timing
from llmkick.study.results.result_file import ResultFile
from llmkick.tasks.task import Task

FRONTIER_FILE = "frontier.json"
_OUTCOMES: Mapping[str, Verdict] = {"within margin": "matching", "beyond margin": "not matching"}


class LevelRow(OpenRecord):
    """The verdict on one level of a method on one task.

    `confirmed` means with every seed and at the divided alpha; a match also on every item.
    """

    level: str
    recipe: str
    verdict: Verdict
    confirmed: bool
    items: int
    of: int
    dense: float | None
    compressed: float | None
    loss: float | None
    interval: tuple[float, float] | None


class FrontierEnds(OpenRecord):
    """The strongest level proven to match and the weakest level proven not to match; None if there is none."""

    name: str
    method: str
    kind: LevelKind
    levels: tuple[str, ...]
    strongest_matching: str | None
    weakest_not_matching: str | None


class FrontierRow(FrontierEnds):
    """The frontier of one method on one task, with every judged level."""

    task: str
    metric: str
    margin: float
    verdicts: tuple[LevelRow, ...]
    order: tuple[str, ...]
    violations: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


class OverallFrontier(FrontierEnds):
    """The frontier of one method over all tasks that have a signal."""

    tasks: tuple[str, ...] = ()


class SearchCost(OpenRecord):
    """The number of items asked of compressed models, and the number for the full grid with one seed."""

    name: str
    task: str
    metric: str
    items: int
    full: int
    models: int
    levels: int


class SearchSettings(OpenRecord):
    """The settings of a search that a study does not have."""

    search_propagate: bool = True
    seeds: tuple[int, ...] = (0,)
    perplexity_margins: tuple[float, ...] = ()


class SearchedStudy(OpenRecord):
    """The study of a search; `facts` holds all its settings."""

    margin: float


class FrontierResult(ResultFile):
    """The content of frontier.json, and the folder of the file."""

    model_config = ConfigDict(extra="forbid")

    file_name: ClassVar[str] = FRONTIER_FILE
    schema_version: ClassVar[int] = 1
    command: ClassVar[str] = "kick frontier"

    study: SearchedStudy
    settings: SearchSettings
    environment: Environment
    timing: Timing
    model: DenseModel
    tasks: tuple[TaskSummary, ...]
    frontiers: tuple[FrontierRow, ...]
    overall: tuple[OverallFrontier, ...]
    cost: tuple[SearchCost, ...]
    warnings: tuple[str, ...]


def read_frontier(folder: Path) -> FrontierResult:
    """Read frontier.json from a folder. Raises DataError if it is missing, damaged or of another schema."""
    return FrontierResult.read(folder)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict on one level, and the comparison behind it."""

    verdict: Verdict
    comparison: Comparison | PerplexityComparison | None
    items: int
    of: int
    confirmed: bool


UNKNOWN = Judged(verdict="undecided", comparison=None, items=0, of=0, confirmed=False)


def matches(judged: Mapping[str, Judged], recipe: Recipe) -> bool:
    """Return whether a level is confirmed to match."""
    level = judged.get(str(recipe), UNKNOWN)
    return level.confirmed and level.verdict == "matching"


def fails(judged: Mapping[str, Judged], recipe: Recipe) -> bool:
    """Return whether a level is confirmed not to match."""
    level = judged.get(str(recipe), UNKNOWN)
    return level.confirmed and level.verdict == "not matching"


def verdict_of(comparison: Comparison | PerplexityComparison | None) -> Verdict:
    """Return the verdict of a comparison, or "incomplete" without a comparison.

    The outcome of a perplexity comparison maps to "matching", "not matching" or "undecided".
    """
    if comparison is None:
        return "incomplete"
    if isinstance(comparison, PerplexityComparison):
        return _OUTCOMES.get(comparison.outcome, "undecided")
    return comparison.verdict


def frontier_row(
    grid: LevelGrid, task: Task, margin: float, frontier: Frontier[Recipe], judged: Mapping[str, Judged]
) -> FrontierRow:
    """Return the row of one method on one task in frontier.json."""

    def text(recipe: Recipe | None) -> str | None:
        return None if recipe is None else level_text(recipe)

    return FrontierRow.model_validate(
        {
            "name": grid.name,
            "method": grid.method,
            "kind": grid.kind,
            "task": task.name,
            "metric": task.metric,
            "margin": margin,
            "levels": [level_text(recipe) for recipe in grid.recipes],
            "strongest_matching": text(frontier.strongest_matching),
            "weakest_not_matching": text(frontier.weakest_not_matching),
            "verdicts": [_level_row(recipe, judged[str(recipe)]) for recipe, _ in frontier.verdicts],
            "order": [level_text(recipe) for recipe in frontier.order],
            "violations": [[level_text(milder), level_text(severer)] for milder, severer in frontier.violations],
            "notes": list(frontier.notes),
        }
    )


def _level_row(recipe: Recipe, judged: Judged) -> LevelRow:
    comparison = judged.comparison
    loss = None
    if comparison is not None:
        loss = comparison.relative_drop if isinstance(comparison, Comparison) else comparison.relative_increase
    return LevelRow(
        level=level_text(recipe),
        recipe=str(recipe),
        verdict=judged.verdict,
        confirmed=judged.confirmed,
        items=judged.items,
        of=judged.of,
        dense=None if comparison is None else comparison.dense,
        compressed=None if comparison is None else comparison.compressed,
        loss=loss,
        interval=None if comparison is None else comparison.interval,
    )
