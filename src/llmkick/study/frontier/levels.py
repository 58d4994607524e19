"""The judge of a frontier search: fill the cells of one level and compare them with the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from llmkick.compression.recipe import Recipe
from llmkick.errors import ModelError, NumericalError
from llmkick.models.memory import free_bytes
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics.frontier import looks
from llmkick.study.cells import Cell, Variant
from llmkick.study.frontier.result import FRONTIER_FILE, Judged, verdict_of
from llmkick.study.levels import LevelGrid
from llmkick.study.results.comparisons import compare_cell, describe_task, is_comparable
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.study.running.context import StudyContext
from llmkick.study.running.evaluation import Evaluation
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.running.metadata import note_answering
from llmkick.study.running.schedule import Schedule
from llmkick.study.running.study_run import JournalWriter
from llmkick.tasks.task import Task

# Maximum number of compressed models in memory, and the maximum share of the free memory for them.
MODELS_KEPT, MEMORY_SHARE = 4, 0.3


class JudgedWithOtherWeightsError(Exception):
    """A level was judged by records that are dropped now, because its weights came out differently."""


@dataclass(kw_only=True)
class LevelJudge:
    """Judges levels of compression on the tasks of a study.

    seeds: calibration seeds; the search uses the first seed, and a confirmation uses all seeds. search_propagate:
    whether the search propagates calibration; a confirmation uses the setting of the study. run_keys: the run keys of
    the judged cells, by grid and task. recipes: the compressed recipes, by grid.
    """

    context: StudyContext
    executor: LocalExecutor
    seeds: tuple[int, ...]
    search_propagate: bool
    run_keys: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    recipes: dict[str, set[str]] = field(default_factory=dict)
    writer: JournalWriter = field(init=False)
    _models: dict[Variant, TransformersModel] = field(default_factory=dict)
    _judged: set[Variant] = field(default_factory=set)
    _changed: set[Variant] = field(default_factory=set)
    _failed: dict[Variant, str] = field(default_factory=dict)
    _asks: bool = False

    def __post_init__(self) -> None:
        self.writer = JournalWriter(context=self.context, schedule=Schedule(cells=(), pending=()))

    def confirm(self, grid: LevelGrid, recipe: Recipe, task: Task, *, margin: float) -> Judged:
        """Judge a level that seems to match on every item, with every seed, at an alpha that allows for the search."""
        alpha = self.context.study.alpha / looks(len(grid.recipes))
        return self.judge(grid, recipe, task, margin=margin, alpha=alpha, confirming=True, every_item=True)

    def refute(self, grid: LevelGrid, recipe: Recipe, task: Task, *, margin: float) -> Judged:
        """Judge a level that seems not to match, with every seed, until that is decided at such an alpha.

        Over all tasks the weakest level fails on any of them, so alpha is also divided by their number. A level that
        matches here is not confirmed: a match is confirmed on every item, and its alpha allows for the levels that
        seemed to match in the search, not for those that seemed to fail.
        """
        tasks = sum(task.metric not in CONTROL_METRICS for task in self.context.tasks)
        alpha = self.context.study.alpha / looks(len(grid.recipes)) / max(1, tasks)
        every = len(self.seeds) > 1 and recipe.needs_calibration  # seeds are compared on the same items
        judged = self.judge(grid, recipe, task, margin=margin, alpha=alpha, confirming=True, every_item=every)
        return replace(judged, confirmed=judged.verdict != "matching")

    def judge(
        self,
        grid: LevelGrid,
        recipe: Recipe,
        task: Task,
        *,
        margin: float,
        alpha: float | None = None,
        confirming: bool = False,
        every_item: bool = False,
    ) -> Judged:
        """Judge one level on one task until the verdict is decided, or on every item.

        A confirmation uses every seed and the `propagate` setting of the study. `alpha` replaces that of the study.
        Raises JudgedWithOtherWeightsError if that dropped records of a level that this object has judged before.
        """
        context = self.context
        level = context.study.alpha if alpha is None else alpha
        evaluation, rule = context.evaluation.at(level), context.rules.get(task.name)
        propagate = context.study.propagate if confirming else self.search_propagate
        seeds: Sequence[int | None] = (
            (self.seeds if confirming else self.seeds[:1]) if recipe.needs_calibration else [None]
        )
        variants = [Variant(recipe=recipe, seed=seed, propagate=propagate) for seed in seeds]
        try:
            cells = [self._filled(variant, task, evaluation, every_item=every_item) for variant in variants]
        except NumericalError as error:  # of this level, often one that is too severe for the precision
            self.writer.warnings.append(f"{recipe} cannot be judged: {error}")
            return Judged(
                verdict="incomplete", comparison=None, items=0, of=len(context.items[task.name]), confirmed=False
            )
        self._judged.update(variants)
        dense_cell = evaluation.dense_cell(cells[0])
        if every_item or rule is None:
            evaluation.fill_every_item(context.model, dense_cell)
        dense = context.journal.cell_records(dense_cell.run_key).set_index("item_id")
        records = pd.concat([context.journal.cell_records(cell.run_key) for cell in cells], ignore_index=True)
        described = describe_task(task, context.prompting)
        comparison = None
        if is_comparable(described, dense, records):
            comparison = compare_cell(
                described,
                str(recipe),
                dense,
                records,
                order=None if every_item or rule is None else rule.order,
                same_weights=lambda _: context.has_dense_weights(variants),
                margin=margin,
                alpha=level,
            )
        self.run_keys.setdefault((grid.name, task.name), set()).update(cell.run_key for cell in cells)
        self.recipes.setdefault(grid.name, set()).add(str(recipe))
        return Judged(
            verdict=verdict_of(comparison),
            comparison=comparison,
            items=int(records["item_id"].nunique()),
            of=len(context.items[task.name]),
            confirmed=confirming,
        )

    def _filled(self, variant: Variant, task: Task, evaluation: Evaluation, *, every_item: bool) -> Cell:
        """Return the cell after filling it with all records that the verdict needs."""
        (cell,) = [cell for cell in self.context.cells(variant) if cell.task.name == task.name]
        is_filled = evaluation.has_every_item(cell) if every_item else evaluation.is_complete(cell)
        if not is_filled or self.context.recorded_digest(variant) is None:
            self._begin_asking()
            model = self._model(variant)
            if every_item:
                evaluation.fill_every_item(model, cell)
            else:
                evaluation.fill(model, cell)
        return cell

    def _model(self, variant: Variant) -> TransformersModel:
        """Return the compressed model and keep a few models in memory.

        The searches of all tasks begin at the same levels, so the models are used again.
        """
        if variant in self._failed:
            raise NumericalError(self._failed[variant])
        if variant not in self._models:
            weights = sum(p.numel() * p.element_size() for p in self.context.dense.network.parameters())
            free = free_bytes(self.context.dense.device) or 0
            # Those that are kept already are not free any more.
            most = min(MODELS_KEPT, len(self._models) + int(free * MEMORY_SHARE / weights))
            while self._models and len(self._models) >= max(1, most):
                del self._models[next(iter(self._models))]
            recorded = self.context.recorded_digest(variant)
            try:
                self._models[variant] = self.executor.compressed(variant, self.context, self.writer)
            except NumericalError as error:
                self._failed[variant] = str(error)
                raise
            if variant in self._judged and self.context.recorded_digest(variant) != recorded:
                self._begin_again(variant)
        return self._models[variant]

    def _begin_asking(self) -> None:
        """Remove the result of earlier answers, which is written anew at the end, and note the versions that answer."""
        if not self._asks:
            self._asks = True
            (self.context.folder / FRONTIER_FILE).unlink(missing_ok=True)
            self.writer.warnings += note_answering(self.context.journal)

    def _begin_again(self, variant: Variant) -> None:
        """Forget what was judged by dropped records; ModelError if these weights changed before."""
        if variant in self._changed:
            raise ModelError(
                f"{variant.label}: compressing it again gave other weights twice in one search, so that nothing can be "
                "said of it; keep its weights (a larger LLMKICK_CACHE_LIMIT), or search on the CPU"
            )
        self._changed.add(variant)
        self._judged.clear()
        raise JudgedWithOtherWeightsError(variant.label)
