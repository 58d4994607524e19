"""The executor that fills the cells of a study with one worker in this process, and the executor protocol.

`llmkick.study.cluster` has the executor for a Ray cluster. Both executors process the same schedule with the same
steps. Workers only answer requests, and only this process writes the journal. The records therefore do not depend on
the executor.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from llmkick.compression.storage.shared_store import ArtifactStore
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration, calibrate
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import NumericalError
from llmkick.files import named_path
from llmkick.models.language_model import LanguageModel
from llmkick.models.server.open_model import open_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from llmkick.study.cells import Cell, Variant
from llmkick.study.expected_work import compression_key, pass_key
from llmkick.study.progress import Observer, StepObserver
from llmkick.study.results.records import Environment
from llmkick.study.running.compressor import StudyCompressor
from llmkick.study.running.context import StudyContext
from llmkick.study.running.environment import environment
from llmkick.study.running.external_models import settings_of
from llmkick.study.running.preparation import ModelSource
from llmkick.study.running.schedule import Schedule
from llmkick.study.spec.axes import CalibrationSetting, CalibrationText
from llmkick.study.spec.study import Study

HERE = "this process"


class RecordWriter(Protocol):
    """Receives the output of workers and writes it to the journal."""

    def open_external_model(self, variant: Variant) -> LanguageModel:
        """Load an external model."""
        ...

    def add_report(self, worker: str, variant: Variant, report: CompressionReport, *, is_kept: bool = True) -> None:
        """Write a compression report to the journal and drop records that were made with other weights."""
        ...

    def fill(self, cell: Cell, model: LanguageModel, dense: LanguageModel, observer: Observer) -> None:
        """Ask a model the missing items of a cell and write every batch to the journal."""
        ...

    def fill_first_batch(self, cell: Cell, model: LanguageModel, observer: Observer) -> None:
        """Ask the dense model the first batch of a cell and write it to the journal."""
        ...

    def close_cell(self, cell: Cell, *, filled: bool) -> None:
        """Handle a cell that was filled or given up."""
        ...


class Executor(ModelSource, Protocol):
    """Loads the models of a study and runs the workers that ask them."""

    warnings: list[str]

    def run(self, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        """Fill all cells; `schedule.failures` lists the cells that were given up."""
        ...

    def environment(self) -> Environment:
        """Return the environment in which the results were produced."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


@dataclass(kw_only=True)
class LocalExecutor:
    """Runs one worker in this process, where any error ends the run.

    `artifacts` is the folder or URL through which machines share compressed models.
    """

    artifacts: str | None = None
    warnings: list[str] = field(default_factory=list)
    _compressed_texts: set[CalibrationText] = field(default_factory=set)
    _digest: str | None = None

    def load(self, study: Study, observer: Observer) -> LanguageModel:
        """Load the dense model."""
        store = store_at(self.artifacts)
        self.observer = observer
        self.model = open_model(study.model, dtype=study.dtype, device=study.device, server=settings_of(study))
        if study.recipes:
            self.compressor = StudyCompressor(
                model=cast(TransformersModel, self.model),  # the compressor refuses a model without local weights
                propagate=study.propagate,
                allow_partial=study.allow_partial,
                observer=observer,
                warnings=self.warnings,
                store=store,
            )
        return self.model

    @property
    def dense(self) -> TransformersModel:
        """The dense model, for code that needs its weights."""
        assert isinstance(self.model, TransformersModel), "the compressor refuses any other"
        return self.model

    def calibrate(self, setting: CalibrationSetting, seed: int, observer: Observer) -> Calibration:
        """Return the calibration windows of a setting and a seed."""
        return windows(self.dense, setting, seed, observer)

    def run(self, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        """Fill the cells one after another."""
        self._ask_first_batches(schedule, context, writer)
        loaded, model = None, self.model
        while (cell := schedule.take(HERE, loaded)) is not None:
            if cell.variant != loaded:
                self._compress_together(cell.variant, context)
                loaded, model = None, self.model  # frees the previous model
                try:
                    model = self._open(cell.variant, context, writer)
                except NumericalError as error:  # of this recipe: the others go on, as they do on a cluster
                    self._give_up(cell, schedule, context, writer, reason=str(error))
                    continue
                loaded = cell.variant
            writer.fill(cell, model, self.model, self.observer)
            schedule.done(HERE)
            writer.close_cell(cell, filled=True)

    def _give_up(
        self, cell: Cell, schedule: Schedule, context: StudyContext, writer: RecordWriter, *, reason: str
    ) -> None:
        """Give up all cells of a variant whose model cannot be made."""
        self.observer.warn(f"{cell.variant}: {reason}")
        schedule.give_up_variant(cell.variant, reason)
        schedule.failed(HERE, reason, final=True)
        for other in context.cells(cell.variant):
            writer.close_cell(other, filled=False)

    def _ask_first_batches(self, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        """Ask the dense model one batch of every task first, so that the forecast soon knows the speed of each.

        The batches are those that its cells ask anyway.
        """
        fresh = [cell for cell in schedule.pending if cell.variant.is_dense and not context.journal.done(cell.run_key)]
        for cell in fresh if len(fresh) > 1 else []:
            writer.fill_first_batch(cell, self.model, self.observer)

    def _open(self, variant: Variant, context: StudyContext, writer: RecordWriter) -> LanguageModel:
        if variant.is_dense:
            return self.model
        if variant.reference:
            return writer.open_external_model(variant)
        return self.compressed(variant, context, writer)

    def compressed(self, variant: Variant, context: StudyContext, writer: RecordWriter) -> TransformersModel:
        """Return the model of a recipe from the cache or a new compression, and pass its report to the writer."""
        compressor = replace(self.compressor, propagate=variant.propagate)
        self.observer.stage(f"compressing {variant}", len(decoder_blocks(self.dense.network)))
        with context.timed("compress", variant.label), context.forecast.working(compression_key(variant)) as advance:
            calibration, expected = context.keys.calibration_of(variant), context.recorded_digest(variant)
            told = replace(compressor, observer=StepObserver(observer=self.observer, on_step=advance))
            model, report = told.compressed(variant.recipe, variant.seed, calibration, expected=expected)
        writer.add_report(HERE, variant, report)
        return model

    def _compress_together(self, first: Variant, context: StudyContext) -> None:
        """Compress all recipes of a seed, with all numbers of windows, in one pass; this needs `propagate = false`."""
        if first.propagate or not first.is_recipe:
            return
        text = context.keys.text_of(first)
        if text in self._compressed_texts:
            return
        self._compressed_texts.add(text)
        wanted = context.wanted_on(text)
        if len(wanted) < 2:
            context.forecast.end(pass_key(text))
            return
        self.observer.stage(f"compressing {len(wanted)} recipes", len(decoder_blocks(self.dense.network)))
        with context.timed("compress", "one pass"), context.forecast.working(pass_key(text)) as advance:
            recipes = [(variant.recipe, context.keys.calibration_of(variant)) for variant in wanted]
            told = replace(self.compressor, observer=StepObserver(observer=self.observer, on_step=advance))
            with suppress(NumericalError):  # one recipe ends the pass: each is compressed by itself, and that one fails
                told.compress_together(recipes, first.seed)

    def dense_digest(self) -> str:
        """Return the digest of the dense weights."""
        if self._digest is None:
            self._digest = weights_digest(self.dense.network)
        return self._digest

    def environment(self) -> Environment:
        """Return the environment in which the results were produced."""
        return environment(self.model if isinstance(self.model, TransformersModel) else None)

    def close(self) -> None:
        """Do nothing: this executor holds no resources."""


def store_at(place: str | None) -> ArtifactStore | None:
    """Return the store of compressed models at a folder or URL. Raises ConfigError if it is not writable."""
    if place is None:
        return None
    store = ArtifactStore(place if "://" in place else str(named_path(place).absolute()))
    store.check()
    return store


def windows(model: TransformersModel, setting: CalibrationSetting, seed: int, observer: Observer) -> Calibration:
    """Return the calibration windows of a setting and a seed, sampled from the model in memory or read from a text."""
    return calibrate(
        model,
        source=setting.source,
        sequences=setting.sequences,
        length=setting.length,
        seed=seed,
        progress=lambda done, _total: observer.advance(done),
    )
