"""Who fills the cells of a study: one worker in this process, or (see `distributed`) many on a Ray cluster.

Both go through the same schedule with the same steps, and only this process writes the journal: workers answer. So
the records do not depend on where they were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from llmkick.compression.storage.shared_store import ArtifactStore
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration, calibrate
from llmkick.compression.walk.report import CompressionReport
from llmkick.models.language_model import LanguageModel
from llmkick.models.server.server import open_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from llmkick.study.cells import Cell, Variant
from llmkick.study.progress import Observer
from llmkick.study.running.compressor import StudyCompressor
from llmkick.study.running.environment import environment
from llmkick.study.running.external_models import settings_of
from llmkick.study.running.schedule import Schedule
from llmkick.study.spec.study import Study

HERE = "this process"


class Desk(Protocol):
    """What a run does for its workers; it owns the journal."""

    @property
    def propagates(self) -> bool:
        """Whether each block is calibrated on the compressed blocks before it."""
        ...

    def calibration_of(self, variant: Variant) -> Calibration | None:
        """The windows that a variant is calibrated on; None for the dense model."""
        ...

    def wanted(self, seed: int | None) -> Sequence[Variant]:
        """The compressed variants of a seed that anything is left to be done with."""
        ...

    def known_digest(self, variant: Variant) -> str | None:
        """The digest of a variant's weights when its records were made."""
        ...

    def open_other(self, variant: Variant) -> LanguageModel:
        """A model made elsewhere."""
        ...

    def keep_report(self, worker: str, variant: Variant, report: CompressionReport) -> None:
        """Note what became of a variant's weights; records that came from others are dropped and made anew."""
        ...

    def fill(self, cell: Cell, model: LanguageModel, dense: LanguageModel, observer: Observer) -> None:
        """Ask a model what a cell lacks, and journal every batch."""
        ...

    def timed(self, stage: str, detail: str) -> AbstractContextManager[None]:
        """Note the time that a piece of work takes."""
        ...

    def size_of(self, cell: Cell) -> int:
        """How many items a cell has."""
        ...

    def settled(self, cell: Cell, *, filled: bool) -> None:
        """A cell was filled, or could not be."""
        ...


class Executor(Protocol):
    """Where a study's models are, and who asks them."""

    warnings: list[str]

    def load(self, study: Study, observer: Observer) -> LanguageModel:
        """The dense model, or its likeness whose answers come from elsewhere."""
        ...

    def calibrate(self, study: Study, seed: int, observer: Observer) -> Calibration:
        """The calibration windows of a seed."""
        ...

    def run(self, schedule: Schedule, desk: Desk) -> None:
        """Fill all cells; what is given up is among the schedule's failures."""
        ...

    def dense_digest(self) -> str:
        """The digest of the dense weights, to be compared with those of compressed ones."""
        ...

    def environment(self) -> dict[str, Any]:
        """What the numbers were made on."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(kw_only=True)
class LocalExecutor:
    """One worker, here: what cannot be done ends the run. `artifacts` is where compressed models are shared."""

    artifacts: str | None = None
    warnings: list[str] = field(default_factory=list)
    _together: set[int | None] = field(default_factory=set)
    _digest: str | None = None

    def load(self, study: Study, observer: Observer) -> LanguageModel:
        """The dense model."""
        store = store_at(self.artifacts)
        self.observer = observer
        self.model = open_model(study.model, dtype=study.dtype, device=study.device, server=settings_of(study))
        if study.recipes:
            self.compressor = StudyCompressor(
                model=cast(TransformersModel, self.model),  # it refuses what has no weights here
                propagate=study.propagate,
                observer=observer,
                warnings=self.warnings,
                store=store,
            )
        return self.model

    @property
    def dense(self) -> TransformersModel:
        """The dense model where its weights are needed."""
        assert isinstance(self.model, TransformersModel), "the compressor refuses any other"
        return self.model

    def calibrate(self, study: Study, seed: int, observer: Observer) -> Calibration:
        """The calibration windows of a seed."""
        return windows(self.dense, study, seed, observer)

    def run(self, schedule: Schedule, desk: Desk) -> None:
        """Fill the cells one after another."""
        at_hand, model = None, self.model
        while (cell := schedule.take(HERE, at_hand)) is not None:
            if cell.variant != at_hand:
                self._compress_together(cell.variant, desk)
                at_hand, model = cell.variant, self.model  # the one before is let go of first
                model = self._opened(cell.variant, desk)
            desk.fill(cell, model, self.model, self.observer)
            schedule.done(HERE)
            desk.settled(cell, filled=True)

    def _opened(self, variant: Variant, desk: Desk) -> LanguageModel:
        if variant.is_dense:
            return self.model
        return desk.open_other(variant) if variant.reference else self.compressed(variant, desk)

    def compressed(self, variant: Variant, desk: Desk) -> TransformersModel:
        """A recipe's model, recalled or made, and noted at the desk."""
        compressor = replace(self.compressor, propagate=desk.propagates)
        self.observer.stage(f"compressing {variant}", len(decoder_blocks(self.dense.network)))
        with desk.timed("compress", variant.label):
            calibration, expected = desk.calibration_of(variant), desk.known_digest(variant)
            model, report = compressor.compressed(variant.recipe, variant.seed, calibration, expected=expected)
        desk.keep_report(HERE, variant, report)
        return model

    def _compress_together(self, first: Variant, desk: Desk) -> None:
        """Without propagation one pass serves all recipes of a seed: their models go into the cache."""
        if desk.propagates or not first.is_recipe or first.seed in self._together:
            return
        self._together.add(first.seed)
        wanted = desk.wanted(first.seed)
        if len(wanted) > 1:
            self.observer.stage(f"compressing {len(wanted)} recipes", len(decoder_blocks(self.dense.network)))
            with desk.timed("compress", "one pass"):
                recipes = [variant.recipe for variant in wanted]
                self.compressor.compress_together(recipes, first.seed, desk.calibration_of(first))

    def dense_digest(self) -> str:
        """The digest of the dense weights."""
        if self._digest is None:
            self._digest = weights_digest(self.dense.network)
        return self._digest

    def environment(self) -> dict[str, Any]:
        """What the numbers were made on."""
        return environment(self.model if isinstance(self.model, TransformersModel) else None)

    def close(self) -> None:
        """Nothing is held."""


def store_at(place: str | None) -> ArtifactStore | None:
    """The store of compressed models at a folder or URL. Raises ConfigError where nothing can be written."""
    if place is None:
        return None
    store = ArtifactStore(place if "://" in place else str(Path(place).expanduser().absolute()))
    store.check()
    return store


def windows(model: TransformersModel, study: Study, seed: int, observer: Observer) -> Calibration:
    """The calibration windows of a seed, from a model that is in memory or text that needs none."""
    spec = study.calibration
    return calibrate(
        model,
        source=spec.source,
        sequences=spec.sequences,
        length=spec.length,
        seed=seed,
        progress=lambda done, _total: observer.advance(done),
    )
