"""Item by item: parts of a task, measures of its answers, and two models or prompts on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from llmkick.claims.evidence import UNKNOWN, Estimate, Evidence, NotAskedError, Statement, evidence_of
from llmkick.claims.runs import Cell, ClaimRun
from llmkick.statistics import Comparison, compare, groups_argument
from llmkick.statistics.mean import mean_test
from llmkick.study.results.records import TaskSummary

DENSE = "dense"


def answers_to(run: ClaimRun, recipe: str, task: str) -> list[pd.DataFrame]:
    """The records of a model on a task, one frame for each calibration seed, by item.

    There is at least one; seeds that an unfinished run asked in part are left out. Raises NotAskedError if the run's
    answers are gone or incomplete, or if cells stopped early: their items depend on the verdict.
    """
    records = run.records()
    if records is None:
        raise NotAskedError(f"{run.name} holds no answers (journal.sqlite), only their means")
    stopped = [
        comparison.recipe
        for comparison in run.result.comparisons
        if isinstance(comparison, Comparison) and comparison.task == task and comparison.stopping is not None
    ]
    if stopped and (recipe == DENSE or recipe in stopped):
        raise NotAskedError(
            f"{task} stopped as soon as a verdict was known, so what was asked depends on it; ask all items "
            '(stop = "never")'
        )
    of_task = records[records["task"] == task]
    items = of_task["item_id"].nunique()
    # A folder can hold answers of an earlier version beside those that count, which are the last.
    by_seed = (
        cell.drop_duplicates("item_id", keep="last").set_index("item_id")
        for _, cell in of_task[of_task["recipe"] == recipe].groupby("seed", dropna=False)
    )
    whole = [cell for cell in by_seed if len(cell) == items]
    if not whole:
        raise NotAskedError(f"{run.name} holds no complete answers of {recipe} to {task}")
    return whole


def parts_of(cell: Cell, detail: str) -> dict[str, Comparison]:
    """Part of the task (a discipline, a length) → the comparison on its items; parts without a signal are left out."""
    run, task = cell.run, cell.task
    dense, compressed = answers_to(run, DENSE, task.name), answers_to(run, cell.comparison.recipe, task.name)
    if not all(detail in details for details in dense[0]["details"]):
        raise NotAskedError(f"the answers to {task.name} in {run.name} do not say their {detail}")
    part = pd.Series([str(details[detail]) for details in dense[0]["details"]], index=dense[0].index)
    comparisons = {}
    for name in dict.fromkeys(part):
        items = list(part.index[part == name])
        comparison = _compare(dense[0], compressed, items, task, run, recipe=cell.comparison.recipe)
        if comparison is not None and comparison.verdict != "no signal":
            comparisons[name] = comparison
    return comparisons


def compare_models(first: tuple[ClaimRun, str], second: tuple[ClaimRun, str], task: TaskSummary) -> Comparison | None:
    """The second model's loss against the first (run, recipe), on the same items; None if the first has no signal.

    Raises NotAskedError if the runs asked other items.
    """
    a, b = answers_to(*first, task.name), answers_to(*second, task.name)
    if any(set(frame.index) != set(a[0].index) for frame in b):
        raise NotAskedError(f"{first[0].name} and {second[0].name} asked other items of {task.name}")
    comparison = _compare(a[0], b, list(a[0].index), task, second[0], recipe=second[1])
    return None if comparison is None or comparison.verdict == "no signal" else comparison


def _compare(
    dense: pd.DataFrame,
    compressed: Sequence[pd.DataFrame],
    items: Sequence[str],
    task: TaskSummary,
    run: ClaimRun,
    *,
    recipe: str,
) -> Comparison | None:
    if len(items) < 2 or any(not set(items) <= set(frame.index) for frame in compressed):
        return None
    by_seed = {str(seed): _scores(frame, items) for seed, frame in enumerate(compressed)}
    clusters = dense["cluster"].reindex(list(items))
    return compare(
        _scores(dense, items),
        by_seed if len(by_seed) > 1 else next(iter(by_seed.values())),
        **groups_argument(task.groups, {str(item): str(cluster) for item, cluster in clusters.items()}),
        margin=run.result.study.margin,
        alpha=run.result.study.alpha,
        chance=task.chance_level,
        task=task.name,
        recipe=recipe,
        same_model=False,  # equal scores on the few items of a part prove little
        explain=False,
    )


def _scores(frame: pd.DataFrame, items: Sequence[str]) -> dict[str, float | None]:
    column = frame["score"].reindex(list(items))
    return {str(item): None if pd.isna(score) else float(score) for item, score in column.items()}


# The ends of a measure of answers. An answer of fewer than four words has no repetition.
_ENDS: Mapping[str, tuple[float, float]] = {"repetition": (0.0, 1.0)}


def measure_rises(run: ClaimRun, recipe: str, task: str, measure: str, *, sign: int, text: str) -> list[Evidence]:
    """That a measure of the answers is higher (sign 1) or lower (−1) than in the dense model's answers.

    Answers without the measure count at its worst for each direction; without such an end they leave it open. Items
    that have it in neither model are left out.
    """
    dense, compressed = answers_to(run, DENSE, task), answers_to(run, recipe, task)
    table = pd.concat([_measured(frame, measure) for frame in (dense[0], *compressed)], axis=1)
    known, table = table.dropna(), table.dropna(how="all")
    if len(known) < 2:
        raise NotAskedError(f"the answers to {task} in {run.name} have no {measure}")
    low, high = _ENDS.get(measure, (math.nan, math.nan))
    ends = (low, high) if sign > 0 else (high, low)  # the worst of a compressed model for the claim, and the best
    changes = [
        sign * (table.iloc[:, 1:].fillna(of_others).to_numpy() - table.iloc[:, :1].fillna(of_dense).to_numpy()).T
        for of_others, of_dense in (ends, ends[::-1])
    ]
    lacking = len(table) - len(known)
    seen = sign * (known.iloc[:, 1:].to_numpy() - known.iloc[:, :1].to_numpy()).T
    clusters = dense[0]["cluster"]  # dialogues, which are drawn
    if lacking:
        text += f" ({lacking} of {len(table)} answers have no {measure.replace('_', ' ')})"
    codes = cluster_codes(clusters.loc[table.index], run)
    tests = [mean_test(change, codes) if np.isfinite(change).all() else None for change in changes]
    statement = Statement(
        text=text,
        run=run.name,
        quantity=f"change of {measure.replace('_', ' ')}",
        estimate=_estimate(seen, clusters.loc[known.index], run, sign=sign),
        p_for=UNKNOWN if tests[0] is None else tests[0].p_above,
        p_against=UNKNOWN if tests[1] is None else tests[1].p_below,
    )
    return [evidence_of(statement)]


def _measured(frame: pd.DataFrame, measure: str) -> pd.Series:
    return pd.Series([details.get(measure) for details in frame["details"]], index=frame.index, dtype=float)


def cluster_codes(cluster: pd.Series, run: ClaimRun) -> np.ndarray[tuple[int, ...], np.dtype[np.intp]]:
    """The clusters of items as numbers. Raises NotAskedError for a single one."""
    codes = pd.factorize(cluster)[0].astype(np.intp)
    if codes.max() < 1:
        raise NotAskedError(f"{run.name} has one cluster of items only")
    return codes


def _estimate(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], cluster: pd.Series, run: ClaimRun, *, sign: int
) -> Estimate:
    """The mean of (seeds, items) with its bounds, of the sign that the reader sees."""
    alpha, test = run.result.study.alpha, mean_test(values, cluster_codes(cluster, run))
    value, width = sign * float(values.mean()), test.critical(alpha, test.df)
    return Estimate(value=value, interval=(value - width, value + width), alpha=alpha)


def task_settings(task: TaskSummary) -> Mapping[str, object]:
    """What identifies a task apart from its worked examples.

    A level of an axis has a name of its own, and with examples a task can have another version than without.
    """
    examples = ("name", "task", "shots", "axes", "version")
    named = {"task": task.task or task.name.partition(" [")[0]}
    return named | {key: cast(object, value) for key, value in task.facts.items() if key not in examples}
