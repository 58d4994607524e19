"""Evaluation of cells: ask a model the missing items and write each batch of records to the journal at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmkick.compression.recipe import Dense
from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell, Variant, style_of
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Observer
from llmkick.study.running.early_stopping import Asked, Scores, StoppingRule
from llmkick.tasks.evaluate import Reference, evaluate_in_batches, evaluate_items
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Record


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Produces the records of a study. `items` maps each task name to the items of the task.

    For some tasks the `dense` model reads the answers of the other models. `dense_keys` maps each task name to the run
    key of the dense model's records. For a task with a rule in `rules`, the compressed and the dense model are asked
    the same batches until the verdict is decided.
    """

    journal: Journal
    model_name: str
    items: Mapping[str, Sequence[Item]]
    prompting: Prompting
    observer: Observer
    dense: LanguageModel
    dense_keys: Mapping[str, str]
    rules: Mapping[str, StoppingRule] = field(default_factory=dict)

    def at(self, alpha: float) -> Evaluation:
        """The evaluation with another error rate of early stopping."""
        return replace(self, rules={name: rule.at(alpha) for name, rule in self.rules.items()})

    def is_complete(self, cell: Cell) -> bool:
        """Return whether a cell has a record for every item, or enough records for its verdict."""
        rule = self.rules.get(cell.task.name)
        if rule is None:
            return self.has_every_item(cell)
        if cell.variant.is_dense:
            return rule.is_settled(self.journal.scores(cell.run_key))
        return rule.is_decided(self.journal.scores(self.dense_keys[cell.task.name]), self.journal.scores(cell.run_key))

    def has_every_item(self, cell: Cell) -> bool:
        """Return whether every item of a cell has a record."""
        done = self.journal.done(cell.run_key)
        return all(item.id in done for item in self.items[cell.task.name])

    def fill(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the model the items that have no record in the cell."""
        rule = self.rules.get(cell.task.name)
        self._begin(cell)
        if rule is None:
            self._fill_in_batches(model, cell)
        elif cell.variant.is_dense:
            rule.settle_signal(self._asked(model, cell))
        else:
            dense = self._asked(self.dense, self.dense_cell(cell))
            rule.until_decided(dense, self._asked(model, cell), watch=self.observer.advance)

    def fill_every_item(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the items that the verdict of the cell did not need, in the same batches."""
        rule = self.rules.get(cell.task.name)
        self._begin(cell)
        if rule is None:
            self._fill_in_batches(model, cell)
            return
        asked = self._asked(model, cell)
        dense = asked if cell.variant.is_dense else self._asked(self.dense, self.dense_cell(cell))
        for batch in rule.order.batches:
            dense.need(batch)
            asked.need(batch)
            self.observer.advance(len(asked.scores))

    def dense_cell(self, cell: Cell) -> Cell:
        """Return the cell of the dense model on the same task."""
        return Cell(variant=Variant(recipe=Dense()), task=cell.task, run_key=self.dense_keys[cell.task.name])

    def _begin(self, cell: Cell) -> None:
        done = self.journal.done(cell.run_key)
        self.observer.stage(f"{cell.variant.label} on {cell.task.name}", len(self.items[cell.task.name]))
        if done:
            self.observer.advance(len(done))  # so that the pace counts only the items of this session

    def _fill_in_batches(self, model: LanguageModel, cell: Cell) -> None:
        done = self.journal.done(cell.run_key)
        started = time.perf_counter()
        style = style_of(cell.task, self.prompting)
        batches = evaluate_in_batches(
            model, cell.task, prompting=style, done=done, reference=self._reference(model, cell)
        )
        for records in batches:
            self._keep(model, cell, records, time.perf_counter() - started)
            started = time.perf_counter()
            done |= {record.item_id for record in records}
            self.observer.advance(len(done))

    def _asked(self, model: LanguageModel, cell: Cell) -> Asked:
        by_id = {item.id: item for item in self.items[cell.task.name]}
        style = style_of(cell.task, self.prompting)

        def ask(batch: Sequence[str]) -> Scores:
            started = time.perf_counter()
            items, reference = [by_id[item] for item in batch], self._reference(model, cell)
            records = evaluate_items(model, cell.task, items, prompting=style, reference=reference)
            self._keep(model, cell, records, time.perf_counter() - started)
            return {record.item_id: record.score for record in records}

        return Asked(scores=self.journal.scores(cell.run_key), ask=ask)

    def _keep(self, model: LanguageModel, cell: Cell, records: Sequence[Record], seconds: float) -> None:
        self.journal.add_records(
            cell.run_key,
            model=model.info.name if cell.variant.reference else self.model_name,
            recipe=cell.variant.label,
            seed=cell.variant.seed,
            task=cell.task.name,
            records=records,
        )
        self.journal.add_seconds("evaluate", cell.task.name, seconds)

    def _reference(self, model: LanguageModel, cell: Cell) -> Reference | None:
        """Return the dense model with its answers as the reference, for tasks that need a reference.

        The dense model itself needs no reference.
        """
        if model is self.dense or not isinstance(cell.task, ReadByReference):
            return None
        answers = self.journal.responses(self.dense_keys[cell.task.name])
        texts = {item_id: text for item_id, (text, reason) in answers.items() if text or reason is None}
        return Reference(model=self.dense, answers=texts)
