"""What came back of a study's recovered models: by task, and by parts of it (discipline, topic, popularity)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pandas as pd

from llmkick.compression.recoveries import recovery_of
from llmkick.statistics import BackNames, CameBack, groups_argument, what_came_back
from llmkick.study.results.records import CONTROL_METRICS, TaskSummary
from llmkick.tasks.grouping import POPULARITY_BINS, popularity_bin

# The details of a record that name a part of its task, and the orders that are not alphabetical.
DETAILS = ("discipline", "category", "bucket", "popularity")
TOPIC = "topic"  # the fixed groups of a task: its subjects, relations or topics
ORDERS: Mapping[str, Sequence[str]] = {
    "bucket": ("short", "medium", "long"),
    "popularity": tuple(map(popularity_bin, POPULARITY_BINS)),
}
MOST_PARTS = 20


@dataclass(frozen=True, kw_only=True)
class RecoveredModel:
    """A recovered model of a study by its label, the label of its base, and the name of the recovery."""

    label: str
    base: str
    recovery: str


def recovered_models(labels: Sequence[str]) -> tuple[list[RecoveredModel], list[str]]:
    """Return the recovered models whose base is in the study too, and a warning for each other.

    A model of an axis of calibration has the base of the same level, or a base without calibration.
    """
    models, warnings = [], []
    for label in labels:
        recovered = recovery_of(label)
        if recovered is None:
            continue
        bases = [base for base in (recovered.base, recovered.base.partition(" [")[0]) if base in labels]
        if bases:
            models.append(RecoveredModel(label=label, base=bases[0], recovery=recovered.recovery))
        else:
            warnings.append(
                f"{label}: {recovered.base} is not in the study, so what came back is not known; add it to the recipes"
            )
    return models, warnings


def unpaired(records: pd.DataFrame, models: Sequence[RecoveredModel]) -> list[str]:
    """Return a warning for each recovered model without seeds whose base has some.

    It was recovered elsewhere, from weights that no seed of the base names: what its own base lost is not known.
    """
    warnings = []
    for model in models:
        recovered, base = (records.loc[records["recipe"] == name, "seed"] for name in (model.label, model.base))
        if len(recovered) and len(base) and recovered.isna().all() and base.notna().all():
            seeds = ", ".join(str(int(seed)) for seed in sorted(base.unique()))
            warnings.append(
                f"{model.label}: it was recovered elsewhere, and the weights of {model.base} depend on the calibration "
                f"seed (here {seeds}), so what came back is not known; give the compressed model that it was made from "
                f"as another model named {model.base}, in place of the recipe"
            )
    return warnings


def unmeasured_by_stopping(tasks: Sequence[str]) -> str:
    """Return the warning that early stopping leaves no fair sample of items on these tasks."""
    return (
        f'what came back is not measured on {", ".join(tasks)}: with stop = "decided" the answers determine how many '
        'items a model is asked, so the items that all were asked are no fair sample; run a study with stop = "never"'
    )


def returned(
    records: pd.DataFrame, tasks: Sequence[TaskSummary], models: Sequence[RecoveredModel], *, alpha: float
) -> list[CameBack]:
    """Compare each recovered model with its base and the dense model, on every task and on the parts of each.

    Where a task is asked with several numbers of shots, the base with more shots than the fewest is one more recovered
    model: the one that costs nothing. Perplexity has no items to lose. A part has two items or more, and a task at most
    20 parts of a kind.
    """
    judged = [task for task in tasks if task.metric not in CONTROL_METRICS]
    rows: list[CameBack] = []
    for model in models:
        for task in judged:
            rows += _of_model(records, task, model, model.label, task.name, alpha=alpha)
    for base in dict.fromkeys(model.base for model in models):
        for few, more in _more_shots(judged):
            shots = f"shots-{more.axes['shots']}"
            model = RecoveredModel(label=f"{base}+{shots}", base=base, recovery=shots)
            rows += _of_model(records, few, model, base, more.name, alpha=alpha)
    return rows


def _more_shots(tasks: Sequence[TaskSummary]) -> Iterator[tuple[TaskSummary, TaskSummary]]:
    """Yield each task of an axis of shots with its level of the fewest shots first."""
    levels: dict[str, list[TaskSummary]] = {}
    for task in tasks:
        if isinstance(task.axes.get("shots"), int):
            levels.setdefault(task.name.partition(" [")[0], []).append(task)
    for of_task in levels.values():
        fewest, *others = sorted(of_task, key=lambda task: int(task.axes["shots"]))
        yield from ((fewest, other) for other in others)


def _of_model(
    records: pd.DataFrame, task: TaskSummary, model: RecoveredModel, asked: str, asked_on: str, *, alpha: float
) -> Iterator[CameBack]:
    """Yield the rows of a recovered model whose records are those of the label `asked` on the task `asked_on`."""
    of_task = records[records["task"] == task.name]
    scores = {name: _by_seed(of_task, name) for name in ("dense", model.base)}
    scores[model.label] = _by_seed(records[records["task"] == asked_on], asked)
    if all(scores.values()) and _share_seeds(scores, model):
        # One order of the items, so that sums round the same way from every order of the records.
        dense = of_task[of_task["recipe"] == "dense"].set_index("item_id").sort_index()
        yield from _of_task(task, model, scores, dense, alpha=alpha)


def _share_seeds(scores: Mapping[str, BySeed], model: RecoveredModel) -> bool:
    """Return whether a seed has both cells; where cells were given up, there may be none."""
    return None in scores[model.base] or not scores[model.base].keys().isdisjoint(scores[model.label])


BySeed = Mapping[int | None, Mapping[str, float | None]]


def _by_seed(of_task: pd.DataFrame, recipe: str) -> BySeed:
    cells = of_task[of_task["recipe"] == recipe]
    return {
        None if pd.isna(seed) else int(seed): {
            str(item): None if pd.isna(score) else float(score)
            for item, score in zip(cell["item_id"], cell["score"], strict=True)
        }
        for seed, cell in cast(Iterable[tuple[float, pd.DataFrame]], cells.groupby("seed", dropna=False))
    }


def _of_task(
    task: TaskSummary, model: RecoveredModel, scores: Mapping[str, BySeed], dense: pd.DataFrame, *, alpha: float
) -> Iterator[CameBack]:
    groups: dict[str, Hashable] = {str(item): str(cluster) for item, cluster in dense["cluster"].items()}
    if any(set(row) != set(groups) for by_seed in scores.values() for row in by_seed.values()):
        return  # a cell that was given up, or that was asked other items
    for detail, group, items in [("", "", list(groups)), *_parts(task, dense)]:
        of_part = {
            name: {seed: {item: row[item] for item in items} for seed, row in by_seed.items()}
            for name, by_seed in scores.items()
        }
        yield what_came_back(
            of_part["dense"][None],
            of_part[model.base],
            of_part[model.label],
            **groups_argument(task.groups, {item: groups[item] for item in items}),
            alpha=alpha,
            names=BackNames(
                task=task.name,
                recipe=model.label,
                base=model.base,
                recovery=model.recovery,
                detail=detail,
                group=group,
            ),
        )


def _parts(task: TaskSummary, dense: pd.DataFrame) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each part of a task: the kind of part, its name, and its items."""
    names: dict[str, dict[str, str]] = {
        detail: {
            str(item): popularity_bin(int(values[detail])) if detail == "popularity" else str(values[detail])
            for item, values in dense["details"].items()
            if values.get(detail) is not None
        }
        for detail in DETAILS
    }
    if task.groups == "strata":
        names[TOPIC] = {str(item): str(cluster) for item, cluster in dense["cluster"].items()}
    for detail, part_of in names.items():
        parts = _in_order(detail, set(part_of.values()))
        if 2 <= len(parts) <= MOST_PARTS:
            for part in parts:
                items = [item for item, name in part_of.items() if name == part]
                if len(items) > 1:
                    yield detail, part, items


def _in_order(detail: str, parts: Collection[str]) -> list[str]:
    order = ORDERS.get(detail, ())
    return sorted(parts, key=lambda part: (order.index(part) if part in order else len(order), part))
