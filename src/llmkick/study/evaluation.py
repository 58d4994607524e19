"""Filling cells: a model is asked what is missing, and every batch of records is journalled at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell, style_of
from llmkick.study.journal import Journal
from llmkick.study.observer import Observer
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Reference, evaluate_in_batches


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Where records of a study are made; `items` are those of each task, by its name.

    `dense` reads the answers of some tasks, and its own answers to them are under `dense_keys`, by task.
    """

    journal: Journal
    model_name: str
    items: Mapping[str, Sequence[Item]]
    prompting: Prompting
    observer: Observer
    dense: LanguageModel
    dense_keys: Mapping[str, str]

    def is_complete(self, cell: Cell) -> bool:
        """Whether every item of a cell has a record."""
        done = self.journal.done(cell.run_key)
        return all(item.id in done for item in self.items[cell.task.name])

    def fill(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the model what the cell still lacks."""
        done = self.journal.done(cell.run_key)
        self.observer.stage(f"{cell.variant.label} on {cell.task.name}", len(self.items[cell.task.name]))
        if done:
            self.observer.advance(len(done))  # so that the pace counts what is asked now
        started = time.perf_counter()
        style = style_of(cell.task, self.prompting)
        batches = evaluate_in_batches(
            model, cell.task, prompting=style, done=done, reference=self._reference(model, cell)
        )
        for records in batches:
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

    def _reference(self, model: LanguageModel, cell: Cell) -> Reference | None:
        """The dense model with its answers, where the task wants them; it is its own reference."""
        if model is self.dense or not isinstance(cell.task, ReadByReference):
            return None
        answers = self.journal.responses(self.dense_keys[cell.task.name])
        known = {item_id: text for item_id, (text, reason) in answers.items() if text or reason is None}
        return Reference(model=self.dense, answers=known)
