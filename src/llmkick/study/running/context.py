"""The context of a study: the objects that a run, a frontier search and the conclusion share.

`llmkick.study.running.preparation.prepare` builds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmkick.models.language_model import LanguageModel
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics import ItemOrder
from llmkick.study.cells import Cell, Variant, variants_of
from llmkick.study.forecast import Forecast
from llmkick.study.journal.journal import Journal
from llmkick.study.judging.judging import Judging
from llmkick.study.progress import Observer
from llmkick.study.running.early_stopping import StoppingRule
from llmkick.study.running.evaluation import Evaluation
from llmkick.study.running.keys import StudyKeys
from llmkick.study.spec.axes import CalibrationText
from llmkick.study.spec.study import Study
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """A study with a claimed folder, a loaded model and sampled items.

    keys: run keys and calibration windows. evaluation: asks a model the missing items of a cell and writes the records
    to the journal. dense_digest: computes the digest of the dense weights. forecast: the work left, kept up to date by
    all that do it. warnings: warnings from the preparation for
    the reader of the results.
    """

    study: Study
    folder: Path
    observer: Observer
    journal: Journal
    judging: Judging | None
    keys: StudyKeys
    evaluation: Evaluation
    dense_digest: Callable[[], str]
    forecast: Forecast
    warnings: tuple[str, ...]

    @property
    def model(self) -> LanguageModel:
        """The dense model."""
        return self.keys.model

    @property
    def dense(self) -> TransformersModel:
        """The dense model, for code that needs its weights."""
        assert isinstance(self.model, TransformersModel), "the compressor refuses any other"
        return self.model

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the study."""
        return self.keys.tasks

    @property
    def prompting(self) -> Prompting:
        """The prompting style for tasks that do not set a style."""
        return self.keys.prompting

    @property
    def items(self) -> Mapping[str, Sequence[Item]]:
        """The items of each task, by task name."""
        return self.evaluation.items

    @property
    def rules(self) -> Mapping[str, StoppingRule]:
        """The stopping rules by task, for `stop = "decided"`."""
        return self.keys.rules

    @property
    def orders(self) -> dict[str, ItemOrder]:
        """The item order of each task with early stopping, by task name."""
        return {name: rule.order for name, rule in self.rules.items()}

    def variants(self) -> Iterator[Variant]:
        """Yield the dense model, the recipes with their seeds, and the external models."""
        return variants_of(self.study)

    def cells(self, variant: Variant) -> list[Cell]:
        """Return the cells of a variant, one per task."""
        return self.keys.cells(variant)

    def is_wanted(self, variant: Variant) -> bool:
        """Return whether the run still needs the model of a variant, for records or for its report."""
        has_report = variant.is_dense or self.journal.digest(self.keys.report_key(variant)) is not None
        return not has_report or not all(map(self.evaluation.is_complete, self.cells(variant)))

    def wanted_on(self, text: CalibrationText) -> list[Variant]:
        """Return the variants of recipes calibrated on this text whose models the run still needs."""
        variants = [v for v in self.variants() if v.is_recipe and self.keys.text_of(v) == text]
        return [variant for variant in variants if self.is_wanted(variant)]

    def recorded_digest(self, variant: Variant) -> str | None:
        """Return the digest of the weights that produced a variant's records, or None if there is no digest yet."""
        return self.journal.digest(self.keys.report_key(variant))

    def has_dense_weights(self, variants: Iterable[Variant]) -> bool:
        """Return whether all variants have exactly the weights of the dense model.

        Writes the digest of the dense weights to the journal, because some reports are made without the model.
        """
        dense = self.dense_digest()
        self.journal.note("dense_digest", dense)
        digests = {self.recorded_digest(variant) for variant in variants} - {None}
        return digests == {dense}

    def left_the_weights(self, label: str) -> bool:
        """Return whether a recipe changed no weight with any seed, or an external model has the dense model's files."""
        checkpoint = self.keys.external_models.checkpoints.get(label)
        if checkpoint is not None:
            return checkpoint.digest == self.model.info.digest
        if label in self.keys.external_models.live:
            return False  # nobody can see the weights of a server
        return self.has_dense_weights(v for v in self.variants() if v.is_recipe and v.label == label)

    @contextmanager
    def timed(self, stage: str, detail: str) -> Iterator[None]:
        """Measure the time of the `with` block and add it to the journal, in seconds."""
        started = time.perf_counter()
        yield
        self.journal.add_seconds(stage, detail, time.perf_counter() - started)
