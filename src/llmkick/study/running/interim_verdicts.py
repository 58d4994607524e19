"""Interim verdicts: a recipe is compared with the dense model on a task as soon as all its records are there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from llmkick.errors import KickError
from llmkick.statistics import ItemOrder
from llmkick.study.cells import Cell
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Observer
from llmkick.study.results.comparisons import compare_all
from llmkick.study.results.records import TaskSummary
from llmkick.study.spec.study import Study


@dataclass(kw_only=True)
class InterimVerdicts:
    """Tells the observer each comparison once its last calibration seed is done. The final ones are made anew."""

    journal: Journal
    study: Study
    tasks: Sequence[TaskSummary]
    observer: Observer
    orders: Mapping[str, ItemOrder] = field(default_factory=dict)  # of tasks that stop when decided
    same_weights: Callable[[str], bool] | None = None  # whether a recipe left the weights as they were
    _run_keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def after(self, cell: Cell, *, filled: bool) -> None:
        """A cell is complete; `filled` in this session, so that there is news."""
        of_task = cell.task.name
        run_keys = self._run_keys.setdefault((cell.variant.label, of_task), [])
        if cell.run_key not in run_keys:
            run_keys.append(cell.run_key)
        dense = self._run_keys.get(("dense", of_task))
        # Seeds may come in any order, from several workers.
        is_last = len(run_keys) == (1 if cell.variant.seed is None else len(self.study.seeds))
        if cell.variant.is_dense or dense is None or not filled or not is_last:
            return
        records = pd.concat([self.journal.cell_records(key) for key in (*dense, *run_keys)], ignore_index=True)
        task = [task for task in self.tasks if task.name == of_task]
        # A preview must not end a run: what is wrong with the records shows when the results are made.
        with contextlib.suppress(KickError):
            for found in compare_all(
                records,
                task,
                [cell.variant.label],
                margin=self.study.margin,
                alpha=self.study.alpha,
                orders=self.orders,
                same_weights=self.same_weights,
            ):
                self.observer.verdict(found)
