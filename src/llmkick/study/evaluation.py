"""Filling cells: a model is asked what is missing, and every batch of records is journalled at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell
from llmkick.study.journal import Journal
from llmkick.study.observer import Observer
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, evaluate_in_batches


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Where records of a study are made; `items` are those of each task, by its name."""

    journal: Journal
    model_name: str
    items: Mapping[str, Sequence[Item]]
    prompting: Prompting
    observer: Observer

    def is_complete(self, cell: Cell) -> bool:
        """Whether every item of a cell has a record."""
        done = self.journal.done(cell.run_key)
        return all(item.id in done for item in self.items[cell.task.name])

    def fill(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the model what the cell still lacks."""
        done = self.journal.done(cell.run_key)
        self.observer.stage(f"{cell.variant.label} on {cell.task.name}", len(self.items[cell.task.name]))
        started = time.perf_counter()
        for records in evaluate_in_batches(model, cell.task, prompting=self.prompting, done=done):
            self.journal.add_records(
                cell.run_key,
                model=model.info.name if cell.variant.reference else self.model_name,
                recipe=cell.variant.label,
                seed=cell.variant.seed,
                task=cell.task.name,
                records=records,
            )
            self.journal.add_seconds("evaluate", cell.task.name, time.perf_counter() - started)
            started = time.perf_counter()
            done |= {record.item_id for record in records}
            self.observer.advance(len(done))
