"""The run of a study: fill the missing cells with an executor, judge the answers, and drop outdated records."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmkick.compression.walk.report import CompressionReport
from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell, Variant
from llmkick.study.expected_work import JUDGING, VERDICTS, cell_key
from llmkick.study.judging.judging import SUFFIX
from llmkick.study.judging.questions import Answered
from llmkick.study.progress import Observer, StepObserver
from llmkick.study.results.axes import summaries_of
from llmkick.study.results.records import CONTROL_METRICS, JournalledCompression
from llmkick.study.results.results import RESULTS_FILE
from llmkick.study.running.context import StudyContext
from llmkick.study.running.executor import Executor
from llmkick.study.running.external_models import describe_model
from llmkick.study.running.forecasting import skip_done
from llmkick.study.running.interim_verdicts import InterimVerdicts
from llmkick.study.running.metadata import note_answering
from llmkick.study.running.schedule import OtherWeightsError, Schedule


@dataclass(frozen=True, kw_only=True)
class CompletedRun:
    """The schedule of a finished run with its failures, and the warnings for the reader of the results."""

    schedule: Schedule
    warnings: tuple[str, ...]


def run_cells(context: StudyContext, executor: Executor) -> CompletedRun:
    """Fill every cell with missing records and have the judge score the answers."""
    variants = list(context.variants())
    cells = [(variant, context.cells(variant)) for variant in variants]
    all_cells = [cell for _, of_variant in cells for cell in of_variant]
    verdicts = InterimVerdicts(
        journal=context.journal,
        study=context.study,
        tasks=summaries_of(context.study, context.tasks, context.prompting),
        observer=context.observer,
        orders=context.orders,
        same_weights=context.left_the_weights,
    )
    pending: list[Cell] = []
    for variant, of_variant in cells:
        missing = [cell for cell in of_variant if not context.evaluation.is_complete(cell)]
        for cell in of_variant:
            if cell not in missing:
                verdicts.after(cell, filled=False)
        # A variant with all records but no compression report is compressed again to get the report.
        if not variant.is_dense:
            # Perplexity takes seconds and tells how severe a recipe is, and so how far early stopping will ask.
            missing.sort(key=lambda cell: cell.task.metric not in CONTROL_METRICS)
        pending += missing or (of_variant[:1] if context.is_wanted(variant) else [])
    if pending or (context.judging is not None and not context.judging.is_complete):
        # Of the earlier answers; until it is written anew, readers compute the results from the journal.
        (context.folder / RESULTS_FILE).unlink(missing_ok=True)
    mixed = note_answering(context.journal) if pending else []
    schedule = Schedule(cells=all_cells, pending=pending)
    writer = JournalWriter(context=context, schedule=schedule, verdicts=verdicts)
    skip_done(context, all_cells, pending)
    writer.show_progress()
    executor.run(schedule, context, writer)
    judged, judge_warnings = _judge(context, schedule, variants)
    outdated = context.journal.run_keys() - {cell.run_key for cell in all_cells} - judged
    dropped = _drop(context, outdated)
    return CompletedRun(schedule=schedule, warnings=(*mixed, *writer.warnings, *judge_warnings, *dropped))


@dataclass(kw_only=True)
class JournalWriter:
    """Writes the output of all workers to the journal and is the only writer of records while cells are filled.

    The writer is thread-safe. `warnings` collects messages for the reader of the results.
    """

    context: StudyContext
    schedule: Schedule
    verdicts: InterimVerdicts | None = None
    warnings: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, cell: Cell, model: LanguageModel, dense: LanguageModel, observer: Observer) -> None:
        """Ask a model the missing items of a cell and write every batch to the journal; `dense` is the dense model."""
        evaluation = self.context.evaluation
        if not evaluation.is_complete(cell):
            replace(evaluation, dense=dense, observer=observer).fill(model, cell)

    def fill_first_batch(self, cell: Cell, model: LanguageModel, observer: Observer) -> None:
        """Ask the dense model the first batch of a cell and write it to the journal."""
        replace(self.context.evaluation, dense=model, observer=observer).fill_first_batch(model, cell)

    def close_cell(self, cell: Cell, *, filled: bool) -> None:
        """Handle a cell that was filled or given up."""
        if filled and self.verdicts is not None:
            with self._lock:
                started = time.perf_counter()
                self.verdicts.after(cell, filled=True)
                if not cell.variant.is_dense:
                    self.context.forecast.work(VERDICTS, 1, time.perf_counter() - started)
        elif not filled:
            self.context.forecast.end(cell_key(cell.variant, cell.task.name))
        self.show_progress()

    def show_progress(self) -> None:
        """Tell the observer how many cells are done."""
        total = len(self.schedule.cells)
        self.context.observer.cells(total - self.schedule.left, total)

    def open_external_model(self, variant: Variant) -> LanguageModel:
        """Load an external model and write its description to the journal."""
        context = self.context
        with context.timed("load", variant.label):
            context.observer.stage(f"loading {variant.label}", 1)
            model = context.keys.external_models.open(variant)
        description = describe_model(variant.label, model, variant.reference)
        context.journal.add_artifact(context.keys.report_key(variant), model.info.digest, description)
        return model

    def add_report(self, worker: str, variant: Variant, report: CompressionReport, *, is_kept: bool = True) -> None:
        """Write a compression report to the journal; drop records that were made with other weights, with a warning.

        is_kept: whether other workers can load the model. Raises OtherWeightsError if another worker is producing
        records with the other weights.
        """
        with self._lock:
            self._add_report(worker, variant, report)
        if is_kept:
            self.schedule.made(variant)

    def _add_report(self, worker: str, variant: Variant, report: CompressionReport) -> None:
        context = self.context
        recorded = context.recorded_digest(variant)
        if recorded == report.digest:
            return
        if recorded is not None:
            if not self.schedule.is_alone(worker):
                raise OtherWeightsError(f"{variant} came out with other weights than on another machine")
            self.warnings.append(
                f"{variant.label}: compressing again gave other weights (another machine or thread count?); "
                "its earlier records were dropped and made anew"
            )
            cells = context.cells(variant)
            context.journal.forget([cell.run_key for cell in cells])
            self.schedule.reopen(cells)
        axes = next((level.axes for level in context.study.recipe_levels() if level.label == variant.label), {})
        compression = JournalledCompression.of(report, variant.label, axes)
        context.journal.add_artifact(context.keys.report_key(variant), report.digest, compression)


def _judge(context: StudyContext, schedule: Schedule, variants: Sequence[Variant]) -> tuple[set[str], list[str]]:
    """Have the judge score the answers; return the run keys of the judged cells and the judge's warnings."""
    judging = context.judging
    if judging is None:
        return set(), []
    given_up = schedule.given_up()
    unanswered = {f.cell.task.name for f in schedule.failures if f.cell.variant.is_dense}
    judged = {task.name for task in judging.judged} - unanswered
    cells = [
        Answered(label=variant.label, seed=variant.seed, task=cell.task.name, run_key=cell.run_key)
        for variant in variants
        for cell in context.cells(variant)
        if cell.task.name in judged and cell.run_key not in given_up
    ]
    forecast = context.forecast
    forecast.skip(JUDGING, len(context.journal.judgements()))
    with context.timed("judge", judging.spec.model), forecast.working(JUDGING) as advance:
        judging.observer = StepObserver(
            observer=context.observer, on_step=advance, on_total=lambda total: forecast.resize(JUDGING, total)
        )
        judging.run(cells, context.items, context.model.info.name)
    return {judging.cell_key(cell, cells) for cell in cells}, judging.warnings


def _drop(context: StudyContext, run_keys: set[str]) -> list[str]:
    """Drop records of other weights, data or settings, which must not mix with the records of this study."""
    if not run_keys:
        return []
    judged = {cell.run_key for cell in context.journal.cells() if cell.task.endswith(SUFFIX)} & run_keys
    asked = len(run_keys) - len(judged)
    context.journal.forget(run_keys)
    lines = []
    if asked:
        lines.append(
            f"the records of {asked} cells were made with other weights, data, precision or version "
            "and were dropped; they were made anew"
        )
    if judged:
        now = "this study asks no judge" if context.judging is None else "they were judged anew"
        lines.append(
            f"the scores of {len(judged)} cells came from another judge, or from other settings or answers, and were "
            f"dropped; {now}"
        )
    return lines
