"""Interim verdicts: compare a recipe with the dense model on a task as soon as all its records exist."""

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
from llmkick.study.results.multiplicity import family_size
from llmkick.study.results.records import TaskSummary
from llmkick.study.spec.study import Study


@dataclass(kw_only=True)
class InterimVerdicts:
    """Reports each comparison to the observer when its last calibration seed is done.

    The final comparisons are computed again from all records.
    """

    journal: Journal
    study: Study
    tasks: Sequence[TaskSummary]
    observer: Observer
    orders: Mapping[str, ItemOrder] = field(default_factory=dict)  # for tasks with early stopping
    same_weights: Callable[[str], bool] | None = None  # whether a recipe left the weights unchanged
    _run_keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def after(self, cell: Cell, *, filled: bool) -> None:
        """Handle a completed cell and report a verdict only if the cell was `filled` in this session."""
        of_task = cell.task.name
        run_keys = self._run_keys.setdefault((cell.variant.label, of_task), [])
        if cell.run_key not in run_keys:
            run_keys.append(cell.run_key)
        dense = self._run_keys.get(("dense", of_task))
        # Several workers may complete the seeds in any order.
        is_last = len(run_keys) == (1 if cell.variant.seed is None else len(self.study.seeds))
        if cell.variant.is_dense or dense is None or not filled or not is_last:
            return
        records = pd.concat([self.journal.cell_records(key) for key in (*dense, *run_keys)], ignore_index=True)
        task = [task for task in self.tasks if task.name == of_task]
        # An interim verdict must not end a run. Invalid records raise the error when the results are computed.
        with contextlib.suppress(KickError):
            for comparison in compare_all(
                records,
                task,
                [cell.variant.label],
                margin=self.study.margin,
                alpha=self.study.alpha,
                orders=self.orders,
                family_size=family_size(self.study.labels(), self.study.correction),
                same_weights=self.same_weights,
            ):
                self.observer.verdict(comparison)
