"""Results of a study from its journal alone, for an unfinished run or a run without its results.json."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import ValidationError

from llmkick.errors import DataError, KickError
from llmkick.models.server_scheme import is_server
from llmkick.statistics import ItemOrder
from llmkick.study.journal.database import JOURNAL_SCHEMA
from llmkick.study.journal.journal import CellEntry, Journal
from llmkick.study.journal.notes import Notes
from llmkick.study.results.axes import variant_rows, with_axes
from llmkick.study.results.comparisons import cell_results, compare_all, overall_by_recipe
from llmkick.study.results.decided_cells import decided, item_orders
from llmkick.study.results.multiplicity import family_size
from llmkick.study.results.records import (
    AnyComparison,
    Artifact,
    CompressionSummary,
    DenseModel,
    Environment,
    OverallVerdict,
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
    """Return the results of the existing records; only models with complete cells are compared.

    A cell is complete if it has a record for every item, or with early stopping if its verdict is known. A model is
    compared on a task when the cells of all its calibration seeds are complete.

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
    complete, orders = _complete(study, tasks, cells, items, records, journal.items())
    with_all_seeds = _with_all_seeds(study, complete)
    whole = records[_of(records, with_all_seeds)]
    compared = [task for task in tasks if ("dense", task.name) in {(cell.recipe, cell.task) for cell in with_all_seeds}]
    comparisons = compare_all(
        whole,
        compared,
        study.labels(),
        margin=study.margin,
        alpha=study.alpha,
        orders=orders,
        family_size=family_size(study.labels(), study.correction),
        same_weights=_same_weights(journal, notes),
    )
    models, warnings = recovered_models(study.labels())[0], _missing(study, tasks, cells, items, complete)
    if models and orders:
        warnings.append(unmeasured_by_stopping(list(orders)))
    came_back = returned(whole, [task for task in compared if task.name not in orders], models, alpha=study.alpha)
    return StudyResult(
        folder=folder,
        study=StudySettings.model_validate({**study.model_dump(mode="json"), "hash": notes.study_hash}),
        environment=Environment.model_validate(notes.environment or {}),
        timing=Timing(seconds=journal.seconds(), compression_seconds={}),
        model=DenseModel.model_validate(notes.model or _model(journal, cells, study)),
        tasks=tuple(tasks),
        results=tuple(_in_order(cell_results(records, tasks, variant_rows(study)), study, names)),
        comparisons=tuple(comparisons),
        overall=tuple(_overall(comparisons, study, tasks, with_all_seeds)),
        compression=tuple(
            CompressionSummary.model_validate(artifact.facts)
            for artifact in journal.artifacts(Artifact)
            if artifact.recipe in study.labels()
        ),
        variants=variant_rows(study),
        returned=tuple(came_back),
        warnings=tuple(warnings),
    )


def _complete(
    study: Study,
    tasks: Sequence[TaskSummary],
    cells: Sequence[CellEntry],
    items: Mapping[str, int],
    records: pd.DataFrame,
    asked: pd.DataFrame,
) -> tuple[list[CellEntry], dict[str, ItemOrder]]:
    """Return the complete cells, and the item order of each task with early stopping; asked: the journal's items."""
    complete = [cell for cell in cells if cell.records >= items.get(cell.task, 0)]
    if study.stop != "decided":
        return complete, {}
    # A judge reads the answers of both models to every item, so what it judges is asked in full.
    in_full = study.judged_tasks()
    orders = item_orders(asked, [task for task in tasks if task.judge is None and task.name not in in_full])
    family = family_size(study.labels(), study.correction)
    known = decided(cells, records, tasks, orders, margin=study.margin, alpha=study.alpha, family_size=family)
    return [*complete, *(cell for cell in known if cell not in complete)], orders


def _seeds(study: Study) -> dict[str, tuple[int | None, ...]]:
    """Return the calibration seeds of each model by its label, (None,) without calibration."""
    recipes = {
        level.label: tuple(study.seeds) if level.recipe.needs_calibration else (None,)
        for level in study.recipe_levels()
    }
    return {"dense": (None,), **recipes, **dict.fromkeys(study.labelled_others(), (None,))}


def _with_all_seeds(study: Study, complete: Sequence[CellEntry]) -> list[CellEntry]:
    """Return the complete cells of the models and tasks whose cells are complete for every seed."""
    found: dict[tuple[str, str], set[int | None]] = {}
    for cell in complete:
        found.setdefault((cell.recipe, cell.task), set()).add(cell.seed)
    seeds = _seeds(study)
    return [cell for cell in complete if found[cell.recipe, cell.task] >= set(seeds.get(cell.recipe, ()))]


def _overall(
    comparisons: Sequence[AnyComparison], study: Study, tasks: Sequence[TaskSummary], cells: Sequence[CellEntry]
) -> list[OverallVerdict]:
    """Return the verdicts over all tasks that are known: of models asked on every task, and of those that lost one."""
    done = {(cell.recipe, cell.task) for cell in cells}
    voting = [task.name for task in tasks if not task.is_control]
    judged = not study.judged_tasks() or any(task.judge is not None for task in tasks)
    whole = {label for label in study.labels() if judged and all((label, name) in done for name in voting)}
    return [row for row in overall_by_recipe(comparisons) if row.recipe in whole or row.verdict == "not matching"]


def left_of_run(journal: Journal, folder: Path, cells: Sequence[CellEntry]) -> str:
    """Return how far an unfinished run is and what is left of it; `cells` are the newest cells of its journal."""
    notes = journal.notes()
    study = _study(notes, folder)
    tasks = [task for task in _tasks(notes, study) if task.judge is None]
    names = [task.name for task in tasks]
    items = {str(name): len(rows) for name, rows in journal.items().groupby("task") if name in names}
    compressed = sum(artifact.recipe in study.labels() for artifact in journal.artifacts(Artifact))
    asked = [cell for cell in cells if cell.task in names]
    over, _ = _complete(study, tasks, asked, items, _records(journal, asked), journal.items())
    from llmkick.study.results.unfinished import what_is_left  # it reads the structure of models, which needs torch

    sentence = what_is_left(study, asked, items, journal.seconds(), compressed=compressed, over=over)
    waiting = study.judge is not None and notes.judged is None
    return f"{sentence}; the judge is asked when all answers are there" if waiting else sentence


def _in_order(rows: Sequence[ResultRow], study: Study, tasks: Sequence[str]) -> list[ResultRow]:
    """Sort the rows: the dense model first, then the recipes, seeds and tasks in the study's order."""
    places = {label: place for place, label in enumerate(("dense", *study.labels()))}
    return sorted(rows, key=lambda row: (places.get(row.recipe, len(places)), row.seed or 0, tasks.index(row.task)))


def _same_weights(journal: Journal, notes: Notes) -> Callable[[str], bool]:
    """Return a function that tells whether a model is known to have the weights of the dense model.

    A recipe has them if every model that it made has their digest, and an external model if its files have the dense
    model's; nobody can see the weights of a server. A run that did not compute the digest knows nothing of a recipe.
    """
    made: dict[str | None, set[str | None]] = {}
    same_files = set()
    of_files = DenseModel.model_validate(notes.model).digest if notes.model else None
    for artifact in journal.artifacts(Artifact):
        made.setdefault(artifact.recipe, set()).add(artifact.digest)
        label, reference = artifact.facts.get("label"), str(artifact.facts.get("reference", ""))
        if label is not None and of_files and artifact.digest == of_files and not is_server(reference):
            same_files.add(label)
    dense = notes.dense_digest
    return lambda label: label in same_files or (dense is not None and made.get(label) == {dense})


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
    from llmkick.tasks.renaming import registry_name
    from llmkick.tasks.task import groups_of

    tasks = []
    for level in study.task_levels():
        task = level.spec.make()
        settings = level.spec.model_dump(exclude_none=True, exclude={"name"})
        about: dict[str, object] = {"metric": task.metric, "chance_level": task.chance_level, "setting": task.setting}
        about |= {"groups": groups_of(task)}
        about |= {"task": registry_name(task)} if registry_name(task) != task.name else {}
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
    seeds = _seeds(study)

    def named(recipe: str, seed: int | None) -> str:
        return f"{recipe} (seed {seed})" if len(seeds.get(recipe, ())) > 1 else recipe

    done = {cell.run_key for cell in complete}
    begun = {(cell.recipe, cell.seed, cell.task) for cell in cells}
    absent = [
        f"{named(recipe, seed)} on {task.name}"
        for recipe in ("dense", *study.labels())
        for seed in seeds[recipe]
        for task in tasks
        if (recipe, seed, task.name) not in begun
    ]
    lines = [
        f"{named(cell.recipe, cell.seed)} on {cell.task}: {cell.records} of {items[cell.task]} items were asked, so it "
        "has no verdict yet"
        for cell in cells
        if cell.run_key not in done
    ]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        lines.append(f"not asked yet: {', '.join(absent[:5])}{more}")
    if study.judged_tasks() and all(task.judge is None for task in tasks):
        lines.append("the scores of the judge are not shown; run the study's command again")
    return lines
