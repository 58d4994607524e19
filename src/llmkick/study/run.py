"""Plan → run → resume: which cells of recipe × seed × task are missing, and filling them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from llmkick.compression.blocks import decoder_blocks
from llmkick.compression.calibration import Calibration
from llmkick.compression.checks import check_recipe_fits
from llmkick.compression.compress import artifact_key
from llmkick.compression.outcome import CompressionReport
from llmkick.compression.recipe import Dense
from llmkick.errors import ConfigError
from llmkick.models.files import require_space, write_text_atomically
from llmkick.models.language_model import LanguageModel, TransformersModel
from llmkick.study.cells import Cell, cells_of, digest_of, style_of
from llmkick.study.config import Study, load_study, make_study
from llmkick.study.evaluation import Evaluation
from llmkick.study.executor import Executor, LocalExecutor
from llmkick.study.falling import FallingVerdicts
from llmkick.study.finish import Finish, given_up
from llmkick.study.foresight import foresee
from llmkick.study.journal import Journal
from llmkick.study.judge_questions import Answered
from llmkick.study.judging import Judging, judge_of
from llmkick.study.notes import note_run
from llmkick.study.observer import Observer, Silent
from llmkick.study.others import Others, answers_key, describe_model
from llmkick.study.results import (
    CONTROL_METRICS,
    StudyResult,
    as_json,
    describe_task,
)
from llmkick.study.schedule import OtherWeightsError, Schedule
from llmkick.study.stopping import StoppingRule, stopping_rules
from llmkick.study.variants import Variant, variants_of
from llmkick.study.watching import OneAtATime
from llmkick.tasks.asking import refuse_unanswerable
from llmkick.tasks.task import Task

# A journal and a report rarely need more.
SPACE_NEEDED = 200_000_000


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
        from llmkick.study.distributed import RayExecutor

        return RayExecutor(address=address, workers=workers, artifacts=artifacts)
    for option, value in (("address", address), ("workers", workers)):
        if value is not None:
            raise ConfigError(f'{option} {value!r} is of a Ray cluster: give executor "ray" with it')
    return LocalExecutor(artifacts=artifacts)


@dataclass(kw_only=True)
class StudyRun:
    """A study at work in its folder: open, load, walk over the variants, finish."""

    study: Study
    folder: Path
    observer: Observer
    executor: Executor = field(default_factory=LocalExecutor)
    schedule: Schedule = field(default_factory=lambda: Schedule(cells=(), pending=()))
    tasks: list[Task] = field(default_factory=list)
    judging: Judging | None = None
    rules: dict[str, StoppingRule] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
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

    def _prepare(self) -> None:
        """Everything that can fail, before anything takes hours."""
        self.tasks = [spec.make() for spec in self.study.tasks]
        self.judging = self._judging()
        self._load()
        # Before the dense model is asked anything: a missing or too short text must not show after hours.
        for seed in dict.fromkeys(variant.seed for variant in variants_of(self.study) if variant.is_recipe):
            self._calibration(seed)
        items = {task.name: task.items(self.model) for task in self.tasks}
        note_run(self.journal, model=self.model, tasks=self.tasks, items=items, prompting=self.prompting)
        judged = {task.name: items[task.name] for task in self.tasks if task.metric not in CONTROL_METRICS}
        for line in foresee(judged, margin=self.study.margin, alpha=self.study.alpha):
            self.observer.warn(line)
        if self.study.stop == "decided":
            # A judge reads the answers of both models to every item.
            judging = [task.name for task in self.judging.judged] if self.judging is not None else []
            stopping = [task for task in self.tasks if task.name not in judging]
            self.rules = stopping_rules(stopping, items, margin=self.study.margin, alpha=self.study.alpha)
        self.evaluation = Evaluation(
            journal=self.journal,
            model_name=self.model.info.name,
            items=items,
            prompting=self.prompting,
            observer=self.observer,
            dense=self.model,
            dense_keys={cell.task.name: cell.run_key for cell in self.cells(Variant(recipe=Dense()))},
            rules=self.rules,
        )

    def _load(self) -> None:
        study = self.study
        self.others = Others(study=study)
        if study.others:
            self.observer.stage(f"looking for {', '.join(study.labelled_others())}", 1)
            self.others.find()
        with self.timed("load", study.model):
            self.observer.stage(f"loading {study.model}", 1)
            self.model = self.executor.load(study, self.observer)
        if study.recipes:
            self._check_recipes()
        self.prompting = self.others.prompting(self.model)
        self._fit_controls()
        for task in self.tasks:
            refuse_unanswerable(self.model, task, prompting=style_of(task, self.prompting))
        self.others.check(self.model, self.tasks, self.prompting)

    @property
    def dense(self) -> TransformersModel:
        """The dense model where its weights are needed."""
        assert isinstance(self.model, TransformersModel), "the compressor refuses any other"
        return self.model

    def _fit_controls(self) -> None:
        """Perplexity becomes bits per byte where two models cut text into different tokens."""
        specs = self.study.tasks
        places = [place for place, spec in enumerate(specs) if spec.name.startswith("perplexity") and not spec.unit]
        different = self.others.with_other_tokens(self.model) if places else []
        if different:
            self.warnings.append(
                f"perplexity is measured in bits per byte: the tokens of {', '.join(different)} are not the dense "
                "model's"
            )
            for place in places:
                self.tasks[place] = specs[place].model_copy(update={"unit": "bytes"}).make()

    def _judging(self) -> Judging | None:
        """The judge, checked before anything is loaded or generated; None when nobody judges."""
        spec = self.study.judge
        if spec is None:
            return None
        judging = Judging(
            spec=spec,
            judge=judge_of(spec, dtype=self.study.dtype, device=self.study.device),
            tasks=self.tasks,
            journal=self.journal,
            observer=self.observer,
        )
        self.observer.stage(f"asking for the judge {spec.model}", 1)
        judging.check()
        return judging

    def _open_folder(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".write-test"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write to {self.folder}: {error}; give another --out") from error
        require_space(self.folder, SPACE_NEEDED, "a run")
        journal = Journal(self.folder)
        try:
            text = self.study.to_toml()
            journal.claim(self.study.hash(), text)
            write_text_atomically(self.folder / "study.toml", text)
        except OSError as error:
            journal.close()
            raise ConfigError(f"cannot write to {self.folder}: {error}; make room or give another --out") from error
        except BaseException:
            journal.close()
            raise
        return journal

    def _check_recipes(self) -> None:
        """Fail before hours of work, not after."""
        blocks = decoder_blocks(self.dense.network)
        placeholder = Calibration(tokens=torch.zeros(1, 2, dtype=torch.long).numpy(), source="", seed=0)
        for recipe in self.study.parsed_recipes():
            check_recipe_fits(recipe, blocks, placeholder)
        if self.study.calibration.length > self.model.max_tokens:
            raise ConfigError(
                f"calibration length {self.study.calibration.length} exceeds the context of "
                f"{self.model.info.name}, {self.model.max_tokens} tokens"
            )

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

    def _calibration(self, seed: int | None) -> Calibration:
        """The windows of a seed. Methods that need none use the first seed's to measure their output error."""
        spec = self.study.calibration
        seed = self.study.seeds[0] if seed is None else seed
        key = digest_of([self.model.info.digest, spec.model_dump(), seed])
        known = self.journal.calibration(key)
        if known is None:
            self.observer.stage(f"calibration text ({spec.source}, seed {seed})", spec.sequences * spec.length)
            with self.timed("calibrate", f"{spec.source}, seed {seed}"):
                known = self.executor.calibrate(self.study, seed, self.observer)
            self.journal.add_calibration(key, known)
        return known

    def calibration_of(self, variant: Variant) -> Calibration | None:
        """The windows that a variant is calibrated on; None for the dense model, and others that are not made here."""
        return self._calibration(variant.seed) if variant.is_recipe else None

    def _weights_key(self, variant: Variant) -> dict[str, Any]:
        """Everything that decides the variant's weights."""
        if variant.reference:
            return self.others.weights_key(variant)
        if not isinstance(self.model, TransformersModel):
            return answers_key(self.model)
        info, device = self.model.info, self.model.device
        return artifact_key(info, device, variant.recipe, self.calibration_of(variant), propagate=self.propagates)

    @property
    def propagates(self) -> bool:
        """Whether each block is calibrated on the compressed blocks before it."""
        return self.study.propagate

    def cells(self, variant: Variant) -> list[Cell]:
        """A variant on every task."""
        info = self.model.info
        return cells_of(
            variant,
            self.tasks,
            weights=self._weights_key(variant),
            prompting=self.prompting,
            reference={"digest": info.digest, "dtype": info.dtype},
            batches={name: rule.key for name, rule in self.rules.items()},
        )

    def _is_wanted(self, variant: Variant) -> bool:
        """Whether anything is left to be done with the variant's model."""
        report_known = variant.is_dense or self.journal.artifact(self.report_key(variant)) is not None
        return not report_known or not all(map(self.evaluation.is_complete, self.cells(variant)))

    def report_key(self, variant: Variant) -> str:
        """The key of what is noted about a variant's weights."""
        return digest_of([self._weights_key(variant), variant.seed])

    def open_other(self, variant: Variant) -> LanguageModel:
        """A model made elsewhere, noted with its size."""
        with self.timed("load", variant.label):
            self.observer.stage(f"loading {variant.label}", 1)
            model = self.others.open(variant)
        facts = describe_model(variant.label, model, variant.reference)
        self.journal.add_artifact(self.report_key(variant), model.info.digest, facts)
        return model

    def wanted(self, seed: int | None) -> list[Variant]:
        """The compressed variants of a seed that anything is left to be done with."""
        variants = [variant for variant in variants_of(self.study) if variant.is_recipe and variant.seed == seed]
        return [variant for variant in variants if self._is_wanted(variant)]

    def known_digest(self, variant: Variant) -> str | None:
        """The digest of a variant's weights when its records were made."""
        known = self.journal.artifact(self.report_key(variant))
        return None if known is None else known[0]

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

    @contextmanager
    def timed(self, stage: str, detail: str) -> Iterator[None]:
        """Note the time that a piece of work takes."""
        started = time.perf_counter()
        yield
        self.journal.add_seconds(stage, detail, time.perf_counter() - started)
