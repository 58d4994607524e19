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

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkick.compression.levels import LevelKind
from llmkick.compression.recipe import Recipe
from llmkick.errors import DataError
from llmkick.files import write_text_atomically
from llmkick.statistics import Comparison, Frontier, PerplexityComparison, Verdict
from llmkick.study.levels import LevelGrid, level_text
from llmkick.study.results.records import Environment, OpenRecord, TaskSummary, Timing
from llmkick.study.results.results import first_problem
from llmkick.tasks.task import Task

FRONTIER_FILE = "frontier.json"
FRONTIER_SCHEMA = 1
_OUTCOMES: Mapping[str, Verdict] = {"within margin": "matching", "beyond margin": "not matching"}


class LevelRow(OpenRecord):
    """The verdict on one level of a method on one task; `confirmed` means on every item and every seed."""

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


class SearchedModel(OpenRecord):
    """The dense model of a search."""

    name: str


class SearchedStudy(OpenRecord):
    """The study of a search; `facts` holds all its settings."""

    margin: float


class FrontierResult(BaseModel):
    """The content of frontier.json, and the folder of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(exclude=True)
    study: SearchedStudy
    settings: SearchSettings
    environment: Environment
    timing: Timing
    model: SearchedModel
    tasks: tuple[TaskSummary, ...]
    frontiers: tuple[FrontierRow, ...]
    overall: tuple[OverallFrontier, ...]
    cost: tuple[SearchCost, ...]
    warnings: tuple[str, ...]

    def write(self) -> Path:
        """Write frontier.json atomically. Raises DataError if the file cannot be written."""
        content = {"schema": FRONTIER_SCHEMA, **self.model_dump(mode="json")}
        path = self.folder / FRONTIER_FILE
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_text_atomically(path, text)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}; every record is safe in the journal") from error
        return path


def read_frontier(folder: Path) -> FrontierResult:
    """Read frontier.json from a folder. Raises DataError if it is missing, damaged or of another schema."""
    path = folder / FRONTIER_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {FRONTIER_FILE}: run `kick frontier` to its end first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != FRONTIER_SCHEMA:
            raise DataError(f"{path} has schema {schema}; this version reads {FRONTIER_SCHEMA}")
        return FrontierResult(folder=folder, **content)
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {first_problem(error)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


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
    """Return whether a level was judged with the verdict "matching"."""
    return judged.get(str(recipe), UNKNOWN).verdict == "matching"


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
