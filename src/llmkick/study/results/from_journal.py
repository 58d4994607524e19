"""Results of a study from its journal alone, for an unfinished run or a run without its results.json."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import ValidationError

from llmkick.errors import DataError, KickError
from llmkick.study.journal.database import JOURNAL_SCHEMA
from llmkick.study.journal.journal import CellEntry, Journal
from llmkick.study.journal.notes import Notes
from llmkick.study.results.axes import variant_rows, with_axes
from llmkick.study.results.comparisons import cell_results, compare_all, overall_by_recipe
from llmkick.study.results.decided_cells import decided, item_orders
from llmkick.study.results.records import (
    Artifact,
    CompressionSummary,
    DenseModel,
    Environment,
    ResultRow,
    StudySettings,
    TaskSummary,
    Timing,
)
from llmkick.study.results.result_file import first_problem
from llmkick.study.results.results import RESULTS_FILE, StudyResult
from llmkick.study.results.returned import recovered_models, returned, unmeasured_by_stopping

if TYPE_CHECKING:
    from llmkick.study.spec.study import Study

COLUMNS = ("model", "recipe", "seed", "task", "item_id", "cluster", "score", "unscored_reason", "tokens", "truncated")


def partial_result(journal: Journal, folder: Path) -> StudyResult:
    """Return the results of the existing records; only complete cells are compared.

    A cell is complete if it has a record for every item, or with early stopping if its verdict is known.

    Raises DataError if the journal does not name its study, has another schema, or has a note that is not a valid
    result.
    """
    try:
        return _partial_result(journal, folder)
    except ValidationError as error:
        raise DataError(
            f"{folder / RESULTS_FILE} cannot be computed: {first_problem(error)} in the journal. "
            "Run the study's command again on this folder to write it anew"
        ) from error


def _partial_result(journal: Journal, folder: Path) -> StudyResult:
    notes = journal.notes()
    items = {str(task): len(asked) for task, asked in journal.items().groupby("task")}
    study = _study(notes, folder)
    tasks = _tasks(notes, study)
    names = [task.name for task in tasks]
    cells = [cell for cell in newest(journal.cells()) if cell.task in names]
    records = _records(journal, cells)
    stops_early = study.stop == "decided"
    orders = item_orders(journal.items(), tasks) if stops_early else {}
    complete = [cell for cell in cells if cell.records >= items.get(cell.task, 0)]
    if stops_early:
        complete += decided(cells, records, tasks, orders, margin=study.margin, alpha=study.alpha)
    whole = records[_of(records, complete)]
    dense = set(whole.loc[whole["recipe"] == "dense", "task"])
    comparisons = compare_all(
        whole,
        [task for task in tasks if task.name in dense],
        study.labels(),
        margin=study.margin,
        alpha=study.alpha,
        orders=orders,
        same_weights=_same_weights(journal, notes),
    )
    models, warnings = recovered_models(study.labels())[0], _missing(study, tasks, cells, items, complete)
    judged = [task.name for task in tasks if not task.is_control]
    if models and stops_early:
        models, warnings = [], [*warnings, unmeasured_by_stopping(judged)]
    came_back = returned(whole, [task for task in tasks if task.name in dense], models, alpha=study.alpha)
    return StudyResult(
        folder=folder,
        study=StudySettings.model_validate({**study.model_dump(mode="json"), "hash": notes.study_hash}),
        environment=Environment.model_validate(notes.environment or {}),
        timing=Timing(seconds=journal.seconds(), compression_seconds={}),
        model=DenseModel.model_validate(notes.model or _model(journal, cells, study)),
        tasks=tuple(tasks),
        results=tuple(_in_order(cell_results(records, tasks, variant_rows(study)), study, names)),
        comparisons=tuple(comparisons),
        overall=tuple(overall_by_recipe(comparisons)),
        compression=tuple(
            CompressionSummary.model_validate(artifact.facts)
            for artifact in journal.artifacts(Artifact)
            if artifact.recipe in study.labels()
        ),
        variants=variant_rows(study),
        returned=tuple(came_back),
        warnings=tuple(warnings),
    )


def left_of_run(journal: Journal, folder: Path, cells: Sequence[CellEntry]) -> str:
    """Return how far an unfinished run is and what is left of it; `cells` are the newest cells of its journal."""
    notes = journal.notes()
    study = _study(notes, folder)
    names = [task.name for task in _tasks(notes, study)]
    items = {str(name): len(rows) for name, rows in journal.items().groupby("task") if name in names}
    compressed = sum(artifact.recipe in study.recipes for artifact in journal.artifacts(Artifact))
    asked = [cell for cell in cells if cell.task in names]
    from llmkick.study.results.unfinished import what_is_left  # it reads the structure of models, which needs torch

    return what_is_left(study, asked, items, journal.seconds(), compressed=compressed)


def _in_order(rows: Sequence[ResultRow], study: Study, tasks: Sequence[str]) -> list[ResultRow]:
    """Sort the rows: the dense model first, then the recipes, seeds and tasks in the study's order."""
    places = {label: place for place, label in enumerate(("dense", *study.labels()))}
    return sorted(rows, key=lambda row: (places.get(row.recipe, len(places)), row.seed or 0, tasks.index(row.task)))


def _same_weights(journal: Journal, notes: Notes) -> Callable[[str], bool] | None:
    """Return a function that tells whether a recipe left the weights unchanged.

    Return None if the run did not compute the digest of the dense weights.
    """
    dense = notes.dense_digest
    if dense is None:
        return None
    made: dict[str | None, set[str | None]] = {}
    for artifact in journal.artifacts(Artifact):
        made.setdefault(artifact.recipe, set()).add(artifact.digest)
    return lambda recipe: made.get(recipe) == {dense}


def newest(cells: Sequence[CellEntry]) -> list[CellEntry]:
    """Return the newest cell for each recipe, seed and task; older cells are of outdated weights or settings."""
    return list({(cell.recipe, cell.seed, cell.task): cell for cell in cells}.values())


def _study(notes: Notes, folder: Path) -> Study:
    from llmkick.study.spec.study import make_study  # it imports much that a report of a complete run needs not

    if notes.schema not in (None, str(JOURNAL_SCHEMA)):
        raise DataError(f"{folder}: the journal has schema {notes.schema}; this version reads {JOURNAL_SCHEMA}")
    if notes.study is None:
        raise DataError(f"{folder}: the journal does not say which study it belongs to; run the study's command again")
    try:
        return make_study(tomllib.loads(notes.study))
    except (KickError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{folder}: this version cannot read the study in the journal: {error}") from error


def _tasks(notes: Notes, study: Study) -> list[TaskSummary]:
    """Return the tasks from the notes of the run, or from the study if the journal has no such note."""
    if isinstance(notes.tasks, list) and notes.tasks:
        return [TaskSummary.model_validate(task) for task in notes.tasks]
    tasks = []
    for level in study.task_levels():
        task = level.spec.make()
        settings = level.spec.model_dump(exclude_none=True, exclude={"name"})
        about = {"metric": task.metric, "chance_level": task.chance_level, "setting": task.setting}
        tasks.append(with_axes(TaskSummary.model_validate({"name": task.name, **settings, **about}), level.axes))
    return tasks


def _model(journal: Journal, cells: Sequence[CellEntry], study: Study) -> DenseModel:
    precision = next((artifact.source_precision for artifact in journal.artifacts(Artifact)), None)
    return DenseModel(name=cells[0].model if cells else study.model, source_precision=precision or "float")


def _records(journal: Journal, cells: Sequence[CellEntry]) -> pd.DataFrame:
    frames = [journal.cell_records(cell.run_key) for cell in cells]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS, "run_key", "details"])


def _of(records: pd.DataFrame, cells: Sequence[CellEntry]) -> pd.Series[bool]:
    return records["run_key"].isin([cell.run_key for cell in cells])


def _missing(
    study: Study,
    tasks: Sequence[TaskSummary],
    cells: Sequence[CellEntry],
    items: Mapping[str, int],
    complete: Sequence[CellEntry],
) -> list[str]:
    """Return lines about the cells without records and about the incomplete cells."""
    done = {cell.run_key for cell in complete}
    begun = {(cell.recipe, cell.task) for cell in cells}
    absent = [(r, task.name) for r in ("dense", *study.labels()) for task in tasks if (r, task.name) not in begun]
    lines = [
        f"{cell.recipe} on {cell.task}: {cell.records} of {items[cell.task]} items were asked, so it has no verdict yet"
        for cell in cells
        if cell.run_key not in done
    ]
    if absent:
        shown = ", ".join(f"{recipe} on {task}" for recipe, task in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        lines.append(f"not asked yet: {shown}{more}")
    return lines
