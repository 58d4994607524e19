"""Plan → run → resume: which cells of recipe × seed × task are missing, and filling them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell, Variant, variants_of
from llmkick.study.judging.questions import Answered
from llmkick.study.progress import Observer, OneAtATime, Silent
from llmkick.study.results.comparisons import describe_task
from llmkick.study.results.results import StudyResult, as_json
from llmkick.study.running.conclude import Finish, given_up
from llmkick.study.running.context import PreparedStudy
from llmkick.study.running.executor import Executor, LocalExecutor
from llmkick.study.running.external_models import describe_model
from llmkick.study.running.interim_verdicts import FallingVerdicts
from llmkick.study.running.schedule import OtherWeightsError, Schedule
from llmkick.study.spec.study import Study, load_study, make_study

EXECUTORS = ("local", "ray")


def run_study(
    study: Study | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
    observer: Observer | None = None,
    executor: Executor | str = "local",
    address: str | None = None,
    artifacts: str | None = None,
) -> StudyResult:
    """Run a study into a folder, or resume the one that is there.

    `study` is a Study, its values as a mapping, or the path of a study file. Every record is journalled as soon as
    its batch is done; what is in the journal is not run again.
    executor: "local", or "ray" for the workers of a Ray cluster (at an `address`, else one that runs on this machine
    or is started for the run); the results are the same. artifacts: a folder or URL where compressed models are
    shared between machines.
    Raises ConfigError before any work when the study, the model and the folder do not fit together.
    """
    if isinstance(study, Path | str):
        study = load_study(Path(study))
    elif not isinstance(study, Study):
        study = make_study(study)
    if isinstance(executor, str):
        executor = make_executor(executor, address=address, artifacts=artifacts)
    run = StudyRun(study=study, folder=Path(out), observer=OneAtATime(observer=observer or Silent()), executor=executor)
    return run.execute()


def make_executor(
    name: str, *, address: str | None = None, workers: int | None = None, artifacts: str | None = None
) -> Executor:
    """An executor by its name; ConfigError for an unknown one, or one that has no use for what is given."""
    if name not in EXECUTORS:
        raise ConfigError(f"unknown executor {name!r}; choose from: {', '.join(EXECUTORS)}")
    if name == "ray":
        from llmkick.study.cluster.ray_executor import RayExecutor

        return RayExecutor(address=address, workers=workers, artifacts=artifacts)
    for option, value in (("address", address), ("workers", workers)):
        if value is not None:
            raise ConfigError(f'{option} {value!r} is of a Ray cluster: give executor "ray" with it')
    return LocalExecutor(artifacts=artifacts)


@dataclass(kw_only=True)
class StudyRun(PreparedStudy):
    """A study at work: walk over the cells, keep what they yield, finish."""

    schedule: Schedule = field(default_factory=lambda: Schedule(cells=(), pending=()))
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def execute(self) -> StudyResult:
        """Run it to its end, or from where it stopped."""
        self.journal = self._open_folder()
        try:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._prepare()
            self._run_cells()
            return Finish(run=self).result(started)
        finally:
            self.executor.close()
            self.journal.close()

    def left_the_weights(self, recipe: str) -> bool:
        """Whether a recipe changed no weight at all, with any seed; or another model is the dense one's files again.

        The dense weights' digest is noted in the journal, for reports that are made without the model.
        """
        if recipe in self.others.checkpoints:
            return self.others.checkpoints[recipe].digest == self.model.info.digest
        variants = [variant for variant in variants_of(self.study) if variant.is_recipe and variant.label == recipe]
        known = [self.journal.artifact(self.report_key(variant)) for variant in variants]
        dense = self.executor.dense_digest()
        self.journal.note("dense_digest", dense)
        return bool(variants) and {one[0] for one in known if one is not None} == {dense}

    def _run_cells(self) -> None:
        variants = list(variants_of(self.study))
        cells = [(variant, self.cells(variant)) for variant in variants]
        every = [cell for _, own in cells for cell in own]
        tasks = [describe_task(task, self.prompting) for task in self.tasks]
        self.verdicts = FallingVerdicts(
            journal=self.journal,
            study=self.study,
            tasks=tasks,
            observer=self.observer,
            orders={name: rule.order for name, rule in self.rules.items()},
            same_weights=self.left_the_weights,
        )
        pending: list[Cell] = []
        for variant, own in cells:
            missing = [cell for cell in own if not self.evaluation.is_complete(cell)]
            for cell in own:
                if cell not in missing:
                    self.verdicts.after(cell, filled=False)
            # With all records there but no report, the model is made once more for it.
            pending += missing or (own[:1] if self._is_wanted(variant) else [])
        self.schedule = Schedule(cells=every, pending=pending)
        self._tell_cells()
        self.executor.run(self.schedule, self)
        planned = {cell.run_key for cell in every} | self._judge(variants)
        self._drop_outdated(self.journal.run_keys() - planned)

    def _tell_cells(self) -> None:
        total = len(self.schedule.cells)
        self.observer.cells(total - self.schedule.left, total)

    def settled(self, cell: Cell, *, filled: bool) -> None:
        """A cell was filled, or could not be."""
        if filled:
            with self._turn:
                self.verdicts.after(cell, filled=True)
        self._tell_cells()

    def size_of(self, cell: Cell) -> int:
        """How many items a cell has."""
        return len(self.evaluation.items[cell.task.name])

    def fill(self, cell: Cell, model: LanguageModel, dense: LanguageModel, observer: Observer) -> None:
        """Ask a model what a cell lacks, and journal every batch; `dense` is the dense model beside it."""
        if not self.evaluation.is_complete(cell):
            replace(self.evaluation, dense=dense, observer=observer).fill(model, cell)

    def _judge(self, variants: Sequence[Variant]) -> set[str]:
        """Have the answers judged; the run keys of the judged cells."""
        judging = self.judging
        if judging is None:
            return set()
        lost = given_up(self.schedule)
        unanswered = {f.cell.task.name for f in self.schedule.failures if f.cell.variant.is_dense}
        judged = {task.name for task in judging.judged} - unanswered
        cells = [
            Answered(label=variant.label, seed=variant.seed, task=cell.task.name, run_key=cell.run_key)
            for variant in variants
            for cell in self.cells(variant)
            if cell.task.name in judged and cell.run_key not in lost
        ]
        with self.timed("judge", judging.spec.model):
            judging.run(cells, self.evaluation.items, self.model.info.name)
        self.warnings += judging.warnings
        return {judging.cell_key(cell, cells) for cell in cells}

    def _drop_outdated(self, run_keys: set[str]) -> None:
        """Records of other weights, data or settings under the same study: they must not mix with these."""
        if run_keys:
            self.warnings.append(
                f"the records of {len(run_keys)} cells were made with other weights, data, precision or version "
                "and were dropped; they were made anew"
            )
            self.journal.forget(run_keys)

    def open_other(self, variant: Variant) -> LanguageModel:
        """A model made elsewhere, noted with its size."""
        with self.timed("load", variant.label):
            self.observer.stage(f"loading {variant.label}", 1)
            model = self.others.open(variant)
        facts = describe_model(variant.label, model, variant.reference)
        self.journal.add_artifact(self.report_key(variant), model.info.digest, facts)
        return model

    def keep_report(self, worker: str, variant: Variant, report: CompressionReport) -> None:
        """Note what became of a variant's weights; records made with other bits of it are dropped, and that is said.

        Raises OtherWeightsError while somebody else makes records with those other bits.
        """
        with self._turn:
            self._keep_report(worker, variant, report)
        self.schedule.made(variant)

    def _keep_report(self, worker: str, variant: Variant, report: CompressionReport) -> None:
        known = self.known_digest(variant)
        if known not in (None, report.digest):
            if not self.schedule.is_alone(worker):
                raise OtherWeightsError(f"{variant} came out with other weights than on another machine")
            self.warnings.append(
                f"{variant.label}: compressing again gave other weights (another machine or thread count?); "
                "its earlier records were dropped and made anew"
            )
            cells = self.cells(variant)
            self.journal.forget([cell.run_key for cell in cells])
            self.schedule.reopen(cells)
        if known != report.digest:
            self.journal.add_artifact(self.report_key(variant), report.digest, as_json(report))
