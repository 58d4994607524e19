"""The cells of an unfinished run with early stopping whose verdict is known, from the journal alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from llmkick.statistics import ItemOrder, groups_argument, order_items, signal_after, stopping_after
from llmkick.study.journal.journal import CellEntry
from llmkick.study.results.records import TaskSummary


def item_orders(items: pd.DataFrame, tasks: Sequence[TaskSummary]) -> dict[str, ItemOrder]:
    """The order in which the items of each task are asked; tasks without a verdict have none. items: of the journal."""
    orders = {}
    for task in tasks:
        of_task = items[items["task"] == task.name]
        if task.is_control or of_task.empty:
            continue
        groups = dict(zip(of_task["item_id"], of_task["cluster"], strict=True))
        seed = task.facts.get("seed", 0)
        assert isinstance(seed, int)
        orders[task.name] = order_items(list(of_task["item_id"]), **groups_argument(task.groups, groups), seed=seed)
    return orders


def decided(
    cells: Sequence[CellEntry],
    records: pd.DataFrame,
    tasks: Sequence[TaskSummary],
    orders: Mapping[str, ItemOrder],
    *,
    margin: float,
    alpha: float,
    family_size: int,
) -> list[CellEntry]:
    """The cells whose records are enough for their verdict; of the dense model, those that show if it has a signal."""
    chances = {task.name: task.chance_level for task in tasks}
    scores = {str(key): _scores(cell) for key, cell in records.groupby("run_key")}
    dense = {cell.task: scores.get(cell.run_key, {}) for cell in cells if cell.recipe == "dense"}
    found = []
    for cell in cells:
        order, of_dense = orders.get(cell.task), dense.get(cell.task, {})
        if order is None:
            continue
        chance = chances[cell.task]
        if cell.recipe == "dense":
            is_known = signal_after(order, of_dense, chance=chance, alpha=alpha) is not None
        else:
            of_cell = scores.get(cell.run_key, {})
            state = stopping_after(
                order, of_dense, of_cell, margin=margin, alpha=alpha, chance=chance, family_size=family_size
            )
            is_known = state is not None
        if is_known:
            found.append(cell)
    return found


def _scores(records: pd.DataFrame) -> dict[str, float | None]:
    """The scores by item; None for an item without one."""
    found = zip(records["item_id"], records["score"], strict=True)
    return {str(item): None if pd.isna(score) else float(score) for item, score in found}
