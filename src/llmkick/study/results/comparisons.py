"""Scores and comparisons of a study, computed only from the records in its journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, cast

import pandas as pd

from llmkick.statistics import (
    Comparison,
    ItemOrder,
    compare,
    compare_bits_per_byte,
    compare_perplexity,
    compare_stopped,
    groups_argument,
    overall_verdict,
)
from llmkick.study.results.missing_judgements import missing_judgements, with_missing_judgements
from llmkick.study.results.records import (
    CONTROL_METRICS,
    AnyComparison,
    OverallVerdict,
    ResultRow,
    TaskSummary,
)
from llmkick.study.results.variants import VariantRow
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import LARGEST_NATS, Record, Task, groups_of, summary_value


class Groups(TypedDict, total=False):
    """The entry of a row whose records have a category or a length: group → numbers by name."""

    groups: dict[str, dict[str, int | float]]


class _Axes(TypedDict, total=False):
    axes: dict[str, int | str]


class _CommonSettings(TypedDict):
    margin: float
    alpha: float
    task: str
    recipe: str
    seeds: list[int]


def describe_task(task: Task, prompting: str) -> TaskSummary:
    """Return the entry of a task in results.json."""
    return TaskSummary.model_validate(
        {
            **full_key(task),
            "metric": task.metric,
            "chance_level": task.chance_level,
            "groups": groups_of(task),
            "setting": task.setting,
            "prompting": task.prompting or prompting,
        }
    )


def cell_results(
    records: pd.DataFrame, tasks: Sequence[TaskSummary], variants: Sequence[VariantRow] = ()
) -> list[ResultRow]:
    """Return one row per model × recipe × seed × task, with the value of the metric over the scored items.

    `variants` has the levels of the study's axes.
    """
    axes = {row.label: row.axes for row in variants} | {row.name: row.axes for row in tasks}
    metric = {task.name: task.metric for task in tasks}
    rows = []
    for key, cell in records.groupby(["model", "recipe", "seed", "task"], dropna=False):
        model, recipe, seed, task = cast(tuple[str, str, float, str], key)
        scored = cell["score"].dropna()
        reasons = cell.loc[cell["score"].isna(), "unscored_reason"].value_counts().sort_index()
        rows.append(
            ResultRow(
                model=model,
                recipe=recipe,
                seed=None if pd.isna(seed) else int(seed),
                task=task,
                metric=metric[task],
                value=summary_value(metric[task], _as_records(cell)),
                n=len(scored),
                unscored=len(cell) - len(scored),
                unscored_reasons={str(reason): int(count) for reason, count in reasons.items()},
                truncated=int(cell["truncated"].sum()),
                tokens=int(cell["tokens"].sum()),
                details=_mean_details(cell),
                **_groups(cell),
                **_axes({**axes.get(recipe, {}), **axes[task]}),
            )
        )
    return rows


def _axes(axes: dict[str, int | str]) -> _Axes:
    return {"axes": axes} if axes else {}


def _as_records(cell: pd.DataFrame) -> list[Record]:
    return [
        Record(item_id=str(item), cluster="", response="", score=_score(score), tokens=int(tokens), details=details)
        for item, score, tokens, details in zip(
            cell["item_id"], cell["score"], cell["tokens"], cell["details"], strict=True
        )
    ]


def _groups(cell: pd.DataFrame) -> Groups:
    """Return the number, mean score and mean details of the scored records by category or story length."""
    scored = cell[cell["score"].notna()]
    for name in ("category", "bucket"):
        if len(scored) and all(name in details for details in scored["details"]):
            by_group = scored.groupby([details[name] for details in scored["details"]], sort=True)
            return {
                "groups": {
                    str(group): {"n": len(rows), "value": float(rows["score"].mean()), **_mean_details(rows)}
                    for group, rows in by_group
                }
            }
    return {}


def _mean_details(cell: pd.DataFrame) -> dict[str, float]:
    """Return the means of the numeric details of the records (exact match, F1, …)."""
    details = pd.DataFrame(list(cell.loc[cell["score"].notna(), "details"]))
    numbers = details.select_dtypes("number")
    return {str(name): float(numbers[name].mean()) for name in numbers.columns}


def compare_all(
    records: pd.DataFrame,
    tasks: Sequence[TaskSummary],
    recipes: Sequence[str],
    *,
    margin: float,
    alpha: float,
    orders: Mapping[str, ItemOrder] | None = None,
    family_size: int = 1,
    same_weights: Callable[[str], bool] | None = None,
) -> list[AnyComparison]:
    """Compare every recipe with the dense model on every task, paired by item.

    `orders` has the item order of each task with early stopping, whose cells ended by the rule for this `family_size`.
    `same_weights` tells whether a recipe left the weights unchanged; it is called only if all scores are identical.

    Two perplexities are comparable only over the same windows. If a window has no score, there is no comparison, and
    `results` has the number of unscored windows. Verdicts whose missing judgements depend on the recipe are incomplete.
    """
    comparisons: list[AnyComparison] = []
    for task in tasks:
        of_task = records[records["task"] == task.name]
        dense = of_task[of_task["recipe"] == "dense"].set_index("item_id")
        for recipe in recipes:
            cells = of_task[of_task["recipe"] == recipe]
            if not cells.empty and not dense.empty and is_comparable(task, dense, cells):
                comparisons.append(
                    compare_cell(
                        task,
                        recipe,
                        dense,
                        cells,
                        order=(orders or {}).get(task.name),
                        family_size=family_size,
                        same_weights=same_weights,
                        margin=margin,
                        alpha=alpha,
                    )
                )
    return with_missing_judgements(comparisons, missing_judgements(records, tasks, recipes, alpha=alpha))


def is_comparable(task: TaskSummary, dense: pd.DataFrame, cells: pd.DataFrame) -> bool:
    """Return whether the records are comparable: perplexity needs a finite loss on every window."""
    if task.metric not in CONTROL_METRICS:
        return True
    scores = pd.concat([dense["score"], cells["score"]])
    return bool(scores.notna().all()) and float(scores.max()) < LARGEST_NATS


def compare_cell(
    task: TaskSummary,
    recipe: str,
    dense: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    order: ItemOrder | None,
    family_size: int = 1,
    same_weights: Callable[[str], bool] | None,
    margin: float,
    alpha: float,
) -> AnyComparison:
    """Compare one recipe with the dense model on one task.

    `cells` has the records of the recipe for all seeds. `dense` has the records of the dense model, indexed by item.
    """
    by_seed = {
        _seed_name(cast(float, seed)): _scores(cell.set_index("item_id"))
        for seed, cell in cells.groupby("seed", dropna=False)
    }
    only = next(iter(by_seed.values()))
    compressed = by_seed if len(by_seed) > 1 else only
    dense_scores = _scores(dense)
    common: _CommonSettings = {
        "margin": margin,
        "alpha": alpha,
        "task": task.name,
        "recipe": recipe,
        "seeds": [int(seed) for seed in by_seed if seed != "no seed"],
    }
    if task.metric == "perplexity":
        tokens = {str(item): float(count) for item, count in dense["tokens"].items()}
        return compare_perplexity(dense_scores, compressed, tokens, **common)
    if task.metric == "bits_per_byte":
        sizes = {str(item): float(details["bytes"]) for item, details in dense["details"].items()}
        return compare_bits_per_byte(dense_scores, compressed, sizes, **common)
    same_model = None
    if same_weights is not None:
        identical = all(
            row.get(item, score) == score for row in by_seed.values() for item, score in dense_scores.items()
        )
        same_model = identical and same_weights(recipe)
    if order is not None:
        chance = task.chance_level
        return compare_stopped(
            order, dense_scores, only, chance=chance, same_model=same_model, family_size=family_size, **common
        )
    return compare(
        dense_scores,
        compressed,
        **groups_argument(task.groups, {str(item): str(group) for item, group in dense["cluster"].items()}),
        chance=task.chance_level,
        same_model=same_model,
        **common,
    )


def _seed_name(seed: float | None) -> str:
    return "no seed" if pd.isna(seed) else str(int(seed))


def _scores(cell: pd.DataFrame) -> dict[str, float | None]:
    return {str(item): _score(score) for item, score in cell["score"].items()}


def _score(value: float | None) -> float | None:
    return None if pd.isna(value) else float(value)


def overall_by_recipe(comparisons: Sequence[AnyComparison]) -> list[OverallVerdict]:
    """Return the verdict of each recipe over all tasks (intersection-union), without perplexity."""
    by_recipe: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if isinstance(comparison, Comparison):
            by_recipe.setdefault(comparison.recipe, []).append(comparison)
    return [
        OverallVerdict(recipe=recipe, verdict=overall_verdict(of_recipe)) for recipe, of_recipe in by_recipe.items()
    ]
