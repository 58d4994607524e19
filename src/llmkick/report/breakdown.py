"""Comparisons for the parts of a task (disciplines, lengths), and means of the measures recorded beside the score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from llmkick.report.lookup import ordered_tasks, task_comparisons
from llmkick.report.payload import Payload
from llmkick.report.run_folder import Run
from llmkick.statistics import compare, groups_argument
from llmkick.statistics.mean import mean_test
from llmkick.study.journal.journal import CellEntry
from llmkick.study.results.records import TaskSummary

Scores = Mapping[str, float | None]

# The fields of a record's details that name a part of the task. A task with more than MOST_GROUPS parts is not split.
GROUPS: Mapping[str, str] = {
    "discipline": "by discipline",
    "bucket": "by length of the story",
    "category": "by category",
}
MOST_GROUPS = 12
GROUP_ORDER = ("short", "medium", "long")
# Details that describe a generated answer independently of its score.
MEASURES: Mapping[str, str] = {
    "unique_tokens": "unique tokens an answer",
    "repetition": "share of repeated 4-grams",
    "copied_share": "share copied from the story",
}
GROUP_COLUMNS = (
    "task", "detail", "group", "recipe", "n", "dense", "compressed", "loss", "loss_low", "loss_high", "verdict",
)  # fmt: skip
MEASURE_COLUMNS = ("task", "measure", "recipe", "n", "value", "low", "high")


def groups_table(run: Run) -> pd.DataFrame:
    """One row for each task × part × recipe: the paired comparison of the items of that part."""
    rows: list[Payload] = []
    compared = {(comparison.task, comparison.recipe) for comparison in task_comparisons(run.result)}
    for task in ordered_tasks(run.result):
        cells = _cells(run, task.name)
        recipes = [r for r in run.result.labels if (task.name, r) in compared and r in cells]
        if not recipes or "dense" not in cells or task.is_control:
            continue
        details = _details(run, cells["dense"][0])
        for detail in GROUPS:
            if detail in details and 2 <= details[detail].nunique() <= MOST_GROUPS:
                rows += _of_task(run, task, detail, details, {recipe: cells[recipe] for recipe in recipes})
    return pd.DataFrame(rows, columns=list(GROUP_COLUMNS))


def measures_table(run: Run) -> pd.DataFrame:
    """One row for each task × measure × recipe, including the dense model: the mean over items with its interval."""
    rows = []
    for task in ordered_tasks(run.result):
        noted = {key for row in run.result.results if row.task == task.name for key in row.details}
        wanted = [measure for measure in MEASURES if measure in noted]
        for recipe, cells in _cells(run, task.name).items() if wanted else ():
            frames = [_details(run, cell) for cell in cells]
            for measure in wanted:
                rows.append({"task": task.name, "measure": measure, "recipe": recipe, **_mean(run, frames, measure)})
    return pd.DataFrame(rows, columns=list(MEASURE_COLUMNS))


def _cells(run: Run, task: str) -> dict[str, list[CellEntry]]:
    """Recipe → its cells on a task, one for each seed; dense first."""
    by_recipe: dict[str, list[CellEntry]] = {}
    for cell in run.cells:
        if cell.task == task and cell.recipe in ("dense", *run.result.labels):
            by_recipe.setdefault(cell.recipe, []).append(cell)
    return dict(sorted(by_recipe.items(), key=lambda pair: pair[0] != "dense"))


def _details(run: Run, cell: CellEntry) -> pd.DataFrame:
    """The details of a cell's records as columns, next to the item and the cluster."""
    assert run.journal is not None
    records = run.journal.cell_records(cell.run_key)
    return pd.concat([records[["item_id", "cluster"]], pd.DataFrame(list(records["details"]))], axis=1)


def _of_task(
    run: Run, task: TaskSummary, detail: str, details: pd.DataFrame, cells: Mapping[str, list[CellEntry]]
) -> list[Payload]:
    assert run.journal is not None
    dense = next(cell for cell in run.cells if cell.recipe == "dense" and cell.task == task.name)
    scores = _scores(run, dense)
    group_of = dict(zip(details["item_id"], details[detail], strict=True))
    cluster_of = dict(zip(details["item_id"], details["cluster"], strict=True))
    names = sorted(details[detail].dropna().unique(), key=lambda name: (_place(name), str(name)))
    rows = []
    for recipe, of_recipe in cells.items():
        by_seed = {"no seed" if cell.seed is None else str(cell.seed): _scores(run, cell) for cell in of_recipe}
        for name in names:
            items = [item for item in scores if group_of.get(item) == name]
            if all(item in of_seed for of_seed in by_seed.values() for item in items):
                part = {seed: {item: of_seed[item] for item in items} for seed, of_seed in by_seed.items()}
                numbers = _comparison(run, task, {item: scores[item] for item in items}, part, cluster_of)
                place = {"task": task.name, "detail": detail, "group": str(name), "recipe": recipe}
                rows.append({**place, **numbers})
    return rows


def _comparison(
    run: Run, task: TaskSummary, dense: Scores, by_seed: Mapping[str, Scores], cluster_of: Mapping[str, str]
) -> Payload:
    study = run.result.study
    comparison = compare(
        dense,
        by_seed if len(by_seed) > 1 else next(iter(by_seed.values())),
        **groups_argument(task.groups, {item: cluster_of[item] for item in dense}),
        margin=study.margin,
        alpha=study.alpha,
        chance=task.chance_level,
        explain=False,
    )
    low, high = comparison.interval or (None, None)
    return {
        "n": comparison.n,
        "dense": comparison.dense,
        "compressed": comparison.compressed,
        "loss": comparison.relative_drop,
        "loss_low": low,
        "loss_high": high,
        "verdict": comparison.verdict,
    }


def _scores(run: Run, cell: CellEntry) -> dict[str, float | None]:
    assert run.journal is not None
    return {row[0]: row[2] for row in run.journal.answers(cell.run_key)}


def _mean(run: Run, frames: list[pd.DataFrame], measure: str) -> Payload:
    """Mean over items and seeds with a cluster-robust interval; empty if no record has the measure."""
    measured = [frame.set_index("item_id") for frame in frames if measure in frame]
    whole = pd.concat([frame[measure].rename(str(i)) for i, frame in enumerate(measured)], axis=1) if measured else None
    whole = None if whole is None else whole.astype(float).dropna()
    if whole is None or whole.empty:
        return {"n": 0, "value": None, "low": None, "high": None}
    clusters = pd.factorize(measured[0].loc[whole.index, "cluster"])[0]
    value = float(whole.to_numpy().mean())
    mean: Payload = {"n": len(whole), "value": value, "low": None, "high": None}
    if clusters.max() > 0:
        test = mean_test(whole.to_numpy().T, clusters.astype(np.intp))
        width = test.critical(run.result.study.alpha, test.df)
        mean |= {"low": value - width, "high": value + width}
    return mean


def _place(name: object) -> int:
    return GROUP_ORDER.index(str(name)) if name in GROUP_ORDER else len(GROUP_ORDER)
