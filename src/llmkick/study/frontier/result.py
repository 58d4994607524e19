"""What a search for frontiers found: level by level, and as the file a figure is drawn from.

`frontier.json` in that folder:

    {"schema": 1, "study": …, "settings": {"search_propagate", "seeds", "perplexity_margins"}, "environment", "timing",
     "model", "tasks": as in results.json,
     "frontiers": [{"name", "method", "kind", "task", "metric", "margin", "levels": mild → severe,
                    "strongest_matching", "weakest_not_matching": levels or null,
                    "verdicts": [{"level", "recipe", "verdict", "confirmed", "items", "of", "dense", "compressed",
                                  "loss", "interval"}], "order", "violations", "notes"}],
     "overall": [{"name", "method", "kind", "levels", "strongest_matching", "weakest_not_matching", "notes"}],
     "cost": [{"name", "task", "items", "full", "models", "levels"}], "warnings"}

Perplexity has frontiers of its own, one for each of its margins: its "matching" means that the increase is
proven to be within the margin. It has no say in `overall`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkick.compression.recipe import Recipe
from llmkick.errors import DataError
from llmkick.files import write_text_atomically
from llmkick.statistics import Comparison, Frontier, PerplexityComparison, Verdict
from llmkick.study.levels import LevelGrid, level_text
from llmkick.tasks.task import Task

FRONTIER_FILE = "frontier.json"
FRONTIER_SCHEMA = 1
_OUTCOMES: Mapping[str, Verdict] = {"within margin": "matching", "beyond margin": "not matching"}


@dataclass(frozen=True, kw_only=True)
class FrontierResult:
    """Everything in frontier.json, and the folder it lies in."""

    folder: Path
    study: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    timing: Mapping[str, Any]
    model: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]]
    frontiers: Sequence[Mapping[str, Any]]
    overall: Sequence[Mapping[str, Any]]
    cost: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]

    def write(self) -> Path:
        """Write frontier.json whole or not at all. Raises DataError when it cannot be written."""
        content = {"schema": FRONTIER_SCHEMA, **{k: v for k, v in vars(self).items() if k != "folder"}}
        path = self.folder / FRONTIER_FILE
        try:
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            write_text_atomically(path, text)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}; every record is safe in the journal") from error
        return path


def read_frontier(folder: Path) -> FrontierResult:
    """Read a folder's frontier.json. Raises DataError when it is missing, damaged or of another schema."""
    path = folder / FRONTIER_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {FRONTIER_FILE}: run `kick frontier` to its end first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != FRONTIER_SCHEMA:
            raise DataError(f"{path} has schema {schema}; this version reads {FRONTIER_SCHEMA}")
        return FrontierResult(folder=folder, **content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was found at one level."""

    verdict: Verdict
    comparison: Comparison | PerplexityComparison | None
    items: int
    of: int
    confirmed: bool


UNKNOWN = Judged(verdict="undecided", comparison=None, items=0, of=0, confirmed=False)


def matches(judged: Mapping[str, Judged], recipe: Recipe) -> bool:
    """Whether a level was judged, and matching."""
    return judged.get(str(recipe), UNKNOWN).verdict == "matching"


def verdict_of(comparison: Comparison | PerplexityComparison | None) -> Verdict:
    """The verdict; of perplexity its outcome in the same words, and "incomplete" where there is no comparison."""
    if comparison is None:
        return "incomplete"
    if isinstance(comparison, PerplexityComparison):
        return _OUTCOMES.get(comparison.outcome, "undecided")
    return comparison.verdict


def frontier_row(
    grid: LevelGrid, task: Task, margin: float, frontier: Frontier[Recipe], judged: Mapping[str, Judged]
) -> dict[str, Any]:
    """One method on one task, for frontier.json."""

    def text(recipe: Recipe | None) -> str | None:
        return None if recipe is None else level_text(recipe)

    return {
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


def _level_row(recipe: Recipe, judged: Judged) -> dict[str, Any]:
    found = judged.comparison
    loss = None
    if found is not None:
        loss = found.relative_increase if isinstance(found, PerplexityComparison) else found.relative_drop
    return {
        "level": level_text(recipe),
        "recipe": str(recipe),
        "verdict": judged.verdict,
        "confirmed": judged.confirmed,
        "items": judged.items,
        "of": judged.of,
        "dense": None if found is None else found.dense,
        "compressed": None if found is None else found.compressed,
        "loss": loss,
        "interval": None if found is None or found.interval is None else list(found.interval),
    }
