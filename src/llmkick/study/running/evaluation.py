"""Evaluation of cells: ask a model the missing items and write each batch of records to the journal at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmkick.compression.recipe import Dense
from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell, Variant, style_of
from llmkick.study.expected_work import cell_key
from llmkick.study.forecast import Forecast
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Observer
from llmkick.study.running.early_stopping import Asked, Scores, StoppingRule
from llmkick.study.running.seen_scores import mean_score, rise_of_perplexity
from llmkick.tasks.evaluate import Reference, evaluate_in_batches, evaluate_items
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Record


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Produces the records of a study. `items` maps each task name to the items of the task, fitted to the dense model.

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
    forecast: Forecast = field(default_factory=lambda: Forecast(()))

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
        self._ask_needed(model, cell, rule)
        self.tell_forecast(cell)
        self.forecast.end(cell_key(cell.variant, cell.task.name))

    def _ask_needed(self, model: LanguageModel, cell: Cell, rule: StoppingRule | None) -> None:
        if rule is None:
            self._fill_in_batches(model, cell)
        elif cell.variant.is_dense:
            rule.settle_signal(self._asked(model, cell), watch=self.observer.advance)
        else:
            dense, compressed = self._asked(self.dense, self.dense_cell(cell)), self._asked(model, cell)

            def watch(items: int) -> None:
                self.observer.advance(items)
                self._tell_loss(cell, rule, dense.scores, compressed.scores)

            rule.until_decided(dense, compressed, watch=watch)
            self.tell_forecast(self.dense_cell(cell))

    def fill_first_batch(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the first batch of a cell without records, which tells how fast the task is."""
        rule = self.rules.get(cell.task.name)
        self._begin(cell)
        if rule is None:
            self._fill_in_batches(model, cell, batches=1)
        elif rule.order.batches:
            self._asked(model, cell).need(rule.order.batches[0])
        self.tell_forecast(cell)

    def fill_every_item(self, model: LanguageModel, cell: Cell) -> None:
        """Ask the items that the verdict of the cell did not need, in the same batches."""
        rule = self.rules.get(cell.task.name)
        self._begin(cell)
        if rule is None:
            self._fill_in_batches(model, cell)
            self.forecast.end(cell_key(cell.variant, cell.task.name))
            return
        asked = self._asked(model, cell)
        dense = asked if cell.variant.is_dense else self._asked(self.dense, self.dense_cell(cell))
        for batch in rule.order.batches:
            dense.need(batch)
            asked.need(batch)
            self.observer.advance(len(asked.scores))
        self.forecast.end(cell_key(cell.variant, cell.task.name))

    def tell_forecast(self, cell: Cell) -> None:
        """Tell the forecast what the records of a cell show of where cells with early stopping will end."""
        if not self.rules or not (scores := self.journal.scores(cell.run_key)):
            return
        rule, key = self.rules.get(cell.task.name), cell_key(cell.variant, cell.task.name)
        dense = scores if cell.variant.is_dense else self.journal.scores(self.dense_keys[cell.task.name])
        if rule is None:
            rise = None if cell.variant.is_dense else rise_of_perplexity(cell.task, dense, scores)
            if rise is not None:
                self.forecast.see_rise(key, rise)
        elif cell.variant.is_dense:
            self.forecast.see_accuracy(key, mean_score(scores), rule.expects_signal(scores))
        else:
            self._tell_loss(cell, rule, dense, scores)

    def _tell_loss(self, cell: Cell, rule: StoppingRule, dense: Scores, compressed: Scores) -> None:
        lost = rule.loss_so_far(dense, compressed)
        if lost is not None:
            self.forecast.see_loss(cell_key(cell.variant, cell.task.name), *lost)

    def dense_cell(self, cell: Cell) -> Cell:
        """Return the cell of the dense model on the same task."""
        return Cell(variant=Variant(recipe=Dense()), task=cell.task, run_key=self.dense_keys[cell.task.name])

    def _begin(self, cell: Cell) -> None:
        done = self.journal.done(cell.run_key)
        self.forecast.begin(cell_key(cell.variant, cell.task.name))
        self.observer.stage(f"{cell.variant.label} on {cell.task.name}", len(self.items[cell.task.name]))
        if done:
            self.observer.advance(len(done))  # so that the pace counts only the items of this session

    def _fill_in_batches(self, model: LanguageModel, cell: Cell, *, batches: int | None = None) -> None:
        """Ask the batches that have items without a record, or only the first few of them."""
        done = self.journal.done(cell.run_key)
        started = time.perf_counter()
        style = style_of(cell.task, self.prompting)
        answered = evaluate_in_batches(
            model, cell.task, prompting=style, done=done, reference=self._reference(model, cell)
        )
        for records in itertools.islice(answered, batches):
            self._keep(model, cell, records, time.perf_counter() - started)
            started = time.perf_counter()
            done |= {record.item_id for record in records}
            self.observer.advance(len(done))

    def _asked(self, model: LanguageModel, cell: Cell) -> Asked:
        by_id: dict[str, Item] = {}  # filled by the first batch, as prompts take time to fit: no other batch does it
        style = style_of(cell.task, self.prompting)

        def ask(batch: Sequence[str]) -> Scores:
            started = time.perf_counter()
            if not by_id:
                by_id.update({item.id: item for item in self._fitted_items(model, cell)})
            items, reference = [by_id[item] for item in batch], self._reference(model, cell)
            records = evaluate_items(model, cell.task, items, prompting=style, reference=reference)
            self._keep(model, cell, records, time.perf_counter() - started)
            return {record.item_id: record.score for record in records}

        return Asked(scores=self.journal.scores(cell.run_key), ask=ask)

    def _fitted_items(self, model: LanguageModel, cell: Cell) -> Sequence[Item]:
        """Return the items with prompts that fit a model; recipes keep the tokenizer and context of the dense model."""
        return cell.task.items(model) if cell.variant.reference else self.items[cell.task.name]

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
        self.forecast.work(cell_key(cell.variant, cell.task.name), len(records), seconds)

    def _reference(self, model: LanguageModel, cell: Cell) -> Reference | None:
        """Return the dense model with its answers as the reference, for tasks that need a reference.

        The dense model itself needs no reference.
        """
        if model is self.dense or not isinstance(cell.task, ReadByReference):
            return None
        answers = self.journal.responses(self.dense_keys[cell.task.name])
        texts = {item_id: text for item_id, (text, reason) in answers.items() if text or reason is None}
        return Reference(model=self.dense, answers=texts)
