"""The results of a study from its journal alone: of a run that is not finished, or whose results.json is lost."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llmkick.errors import DataError, KickError
from llmkick.study.journal.database import JOURNAL_SCHEMA
from llmkick.study.journal.journal import CellEntry, Journal
from llmkick.study.results.results import StudyResult, as_json, cell_results, compare_all, overall_by_recipe
from llmkick.study.spec.study import Study, make_study

COLUMNS = ("model", "recipe", "seed", "task", "item_id", "cluster", "score", "unscored_reason", "tokens", "truncated")


def partial_result(journal: Journal, folder: Path) -> StudyResult:
    """What the records that exist say. A cell is compared once it has a record for every item of its task.

    Raises DataError when the journal does not say which study it belongs to, or is of another schema.
    """
    meta = journal.meta()
    items = {str(task): len(asked) for task, asked in journal.items().groupby("task")}
    cells = newest(journal.cells())
    study = _study(meta, folder)
    tasks = _tasks(meta, study)
    known = {task["name"]: place for place, task in enumerate(tasks)}
    cells = [cell for cell in cells if cell.task in known]
    records = _records(journal, cells)
    whole = records[_of(records, [cell for cell in cells if cell.records >= items.get(cell.task, 0)])]
    dense = set(whole.loc[whole["recipe"] == "dense", "task"])
    comparisons = compare_all(
        whole,
        [task for task in tasks if task["name"] in dense],
        study.labels(),
        margin=study.margin,
        alpha=study.alpha,
        same_weights=_same_weights(journal, meta),
    )
    rows = cell_results(records, tasks)
    places = {name: place for place, name in enumerate(("dense", *study.labels()))}
    return StudyResult(
        folder=folder,
        study={**study.model_dump(mode="json"), "hash": meta.get("study_hash")},
        environment=_noted(meta, "environment") or {},
        timing={"seconds": journal.seconds(), "compression_seconds": {}},
        model=_noted(meta, "model") or _model(journal, cells, study),
        tasks=tasks,
        results=sorted(
            rows, key=lambda row: (places.get(row["recipe"], len(places)), row["seed"] or 0, known[row["task"]])
        ),
        comparisons=[as_json(comparison) for comparison in comparisons],
        overall=overall_by_recipe(comparisons),
        compression=[report for report in journal.artifacts() if report.get("recipe") in study.recipes],
        warnings=_missing(study, tasks, cells, items),
    )


def _same_weights(journal: Journal, meta: Mapping[str, str]) -> Callable[[str], bool] | None:
    """Whether a recipe left the weights as they were; None where the run never had to look at the dense ones."""
    dense = _noted(meta, "dense_digest")
    if dense is None:
        return None
    made: dict[str, set[str]] = {}
    for report in journal.artifacts():
        made.setdefault(str(report.get("recipe")), set()).add(str(report.get("digest")))
    return lambda recipe: made.get(recipe) == {dense}


def newest(cells: Sequence[CellEntry]) -> list[CellEntry]:
    """Of cells about the same thing, the one made last: the others are of weights or settings that are gone."""
    return list({(cell.recipe, cell.seed, cell.task): cell for cell in cells}.values())


def _study(meta: Mapping[str, str], folder: Path) -> Study:
    if meta.get("schema", str(JOURNAL_SCHEMA)) != str(JOURNAL_SCHEMA):
        raise DataError(f"{folder}: the journal has schema {meta['schema']}; this version reads {JOURNAL_SCHEMA}")
    if "study" not in meta:
        raise DataError(f"{folder}: the journal does not say which study it belongs to; run the study's command again")
    try:
        return make_study(tomllib.loads(meta["study"]))
    except (KickError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{folder}: this version cannot read the study in the journal: {error}") from error


def _noted(meta: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(meta[key])
    except (KeyError, json.JSONDecodeError):
        return None


def _tasks(meta: Mapping[str, str], study: Study) -> list[Mapping[str, Any]]:
    """The tasks as the run noted them; a journal from before it did tells no more than the study does."""
    noted: list[Mapping[str, Any]] | None = _noted(meta, "tasks")
    if isinstance(noted, list) and noted:
        return noted
    tasks: list[Mapping[str, Any]] = []
    for spec in study.tasks:
        task = spec.make()
        about = {"metric": task.metric, "chance_level": task.chance_level, "setting": task.setting}
        tasks.append({"name": task.name, **spec.model_dump(exclude_none=True, exclude={"name"}), **about})
    return tasks


def _model(journal: Journal, cells: Sequence[CellEntry], study: Study) -> dict[str, Any]:
    precision = next((report.get("source_precision") for report in journal.artifacts()), None)
    return {"name": cells[0].model if cells else study.model, "source_precision": precision or "float"}


def _records(journal: Journal, cells: Sequence[CellEntry]) -> pd.DataFrame:
    frames = [journal.cell_records(cell.run_key) for cell in cells]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS, "run_key", "details"])


def _of(records: pd.DataFrame, cells: Sequence[CellEntry]) -> pd.Series[bool]:
    return records["run_key"].isin([cell.run_key for cell in cells])


def _missing(
    study: Study, tasks: Sequence[Mapping[str, Any]], cells: Sequence[CellEntry], items: Mapping[str, int]
) -> list[str]:
    """Which cells have no record yet, and which only some."""
    begun = {(cell.recipe, cell.task) for cell in cells}
    absent = [(r, task["name"]) for r in ("dense", *study.labels()) for task in tasks if (r, task["name"]) not in begun]
    found = [
        f"{cell.recipe} on {cell.task}: {cell.records} of {items[cell.task]} items were asked, so it has no verdict yet"
        for cell in cells
        if cell.records < items.get(cell.task, 0)
    ]
    if absent:
        shown = ", ".join(f"{recipe} on {task}" for recipe, task in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        found.append(f"not asked yet: {shown}{more}")
    return found
