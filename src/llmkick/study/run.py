"""Plan → run → resume: which cells of recipe × seed × task are missing, and filling them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from llmkick.compression.blocks import decoder_blocks
from llmkick.compression.calibration import Calibration, calibrate
from llmkick.compression.checks import check_recipe_fits
from llmkick.compression.compress import artifact_key
from llmkick.compression.recipe import Dense
from llmkick.errors import ConfigError
from llmkick.models.files import require_space, write_text_atomically
from llmkick.models.language_model import LanguageModel, TransformersModel, weights_digest
from llmkick.models.server import open_model
from llmkick.study.caveats import loops
from llmkick.study.cells import Cell, cells_of, digest_of, style_of
from llmkick.study.compressor import StudyCompressor
from llmkick.study.config import Study, load_study, make_study
from llmkick.study.environment import environment, peak_memory
from llmkick.study.evaluation import Evaluation
from llmkick.study.falling import FallingVerdicts
from llmkick.study.families import agreement, correction_note, families
from llmkick.study.foresight import foresee
from llmkick.study.journal import Journal
from llmkick.study.judge_questions import Answered
from llmkick.study.judging import Judging, judge_of
from llmkick.study.noise import HALF_PRECISIONS, describe_noise, noise_of_choices
from llmkick.study.notes import note_run
from llmkick.study.observer import Observer, Silent
from llmkick.study.others import Others, answers_key, describe_model, describe_recipe, settings_of
from llmkick.study.record_warnings import warnings_of
from llmkick.study.results import (
    CONTROL_METRICS,
    StudyResult,
    as_json,
    cell_results,
    compare_all,
    describe_task,
    overall_by_recipe,
)
from llmkick.study.stopping import StoppingRule, stopping_rules
from llmkick.study.variants import Variant, variants_of
from llmkick.tasks.task import Task, refuse_unanswerable

# A journal and a report rarely need more.
SPACE_NEEDED = 200_000_000


def run_study(
    study: Study | Mapping[str, Any] | Path | str, *, out: Path | str, observer: Observer | None = None
) -> StudyResult:
    """Run a study into a folder, or resume the one that is there.

    `study` is a Study, its values as a mapping, or the path of a study file. Every record is journalled as soon as
    its batch is done; what is in the journal is not run again.
    Raises ConfigError before any work when the study, the model and the folder do not fit together.
    """
    if isinstance(study, Path | str):
        study = load_study(Path(study))
    elif not isinstance(study, Study):
        study = make_study(study)
    run = StudyRun(study=study, folder=Path(out), observer=observer or Silent())
    return run.execute()


@dataclass(kw_only=True)
class StudyRun:
    """A study at work in its folder: open, load, walk over the variants, finish."""

    study: Study
    folder: Path
    observer: Observer
    tasks: list[Task] = field(default_factory=list)
    judging: Judging | None = None
    rules: dict[str, StoppingRule] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def execute(self) -> StudyResult:
        """Run it to its end, or from where it stopped."""
        self.journal = self._open_folder()
        try:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._prepare()
            self._run_cells()
            return self._finish(started)
        finally:
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
            dense_keys={cell.task.name: cell.run_key for cell in self._cells(Variant(recipe=Dense()))},
            rules=self.rules,
        )

    def _load(self) -> None:
        study = self.study
        self.others = Others(study=study)
        if study.others:
            self.observer.stage(f"looking for {', '.join(study.labelled_others())}", 1)
            self.others.find()
        with self._timed("load", study.model):
            self.observer.stage(f"loading {study.model}", 1)
            self.model = open_model(study.model, dtype=study.dtype, device=study.device, server=settings_of(study))
        if study.recipes:
            self.compressor = StudyCompressor(
                model=cast(TransformersModel, self.model),  # it refuses what has no weights here
                propagate=study.propagate,
                observer=self.observer,
                warnings=self.warnings,
            )
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
        total, finished = len(variants) * len(self.tasks), 0
        planned: set[str] = set()
        together: set[int | None] = set()
        self.observer.cells(0, total)
        tasks = [describe_task(task, self.prompting) for task in self.tasks]
        verdicts = FallingVerdicts(
            journal=self.journal,
            study=self.study,
            tasks=tasks,
            observer=self.observer,
            orders={name: rule.order for name, rule in self.rules.items()},
        )
        for variant in variants:
            cells = self._cells(variant)
            planned |= {cell.run_key for cell in cells}
            model = None
            if self._is_wanted(variant):
                if not self.study.propagate and variant.is_recipe and variant.seed not in together:
                    together.add(variant.seed)
                    self._compress_together(variant.seed)
                model = self._model_of(variant, cells)
            for cell in cells:
                is_new = model is not None and not self.evaluation.is_complete(cell)
                if model is not None and is_new:
                    self.evaluation.fill(model, cell)
                verdicts.after(cell, filled=is_new)
                finished += 1
                self.observer.cells(finished, total)
        planned |= self._judge(variants)
        self._drop_outdated(self.journal.run_keys() - planned)

    def _judge(self, variants: Sequence[Variant]) -> set[str]:
        """Have the answers judged; the run keys of the judged cells."""
        judging = self.judging
        if judging is None:
            return set()
        judged = {task.name for task in judging.judged}
        cells = [
            Answered(label=variant.label, seed=variant.seed, task=cell.task.name, run_key=cell.run_key)
            for variant in variants
            for cell in self._cells(variant)
            if cell.task.name in judged
        ]
        with self._timed("judge", judging.spec.model):
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
            total = spec.sequences * spec.length
            self.observer.stage(f"calibration text ({spec.source}, seed {seed})", total)
            with self._timed("calibrate", f"{spec.source}, seed {seed}"):
                known = calibrate(
                    self.dense,
                    source=spec.source,
                    sequences=spec.sequences,
                    length=spec.length,
                    seed=seed,
                    progress=lambda done, _total: self.observer.advance(done),
                )
            self.journal.add_calibration(key, known)
        return known

    def _calibration_of(self, variant: Variant) -> Calibration | None:
        return self._calibration(variant.seed) if variant.is_recipe else None

    def _weights_key(self, variant: Variant) -> dict[str, Any]:
        """Everything that decides the variant's weights."""
        if variant.reference:
            return self.others.weights_key(variant)
        if not isinstance(self.model, TransformersModel):
            return answers_key(self.model)
        if variant.is_dense:
            return artifact_key(self.model.info, self.model.device, variant.recipe, None, propagate=True)
        return self.compressor.key(variant.recipe, self._calibration_of(variant))

    def _cells(self, variant: Variant) -> list[Cell]:
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
        report_known = variant.is_dense or self.journal.artifact(self._report_key(variant)) is not None
        return not report_known or not all(map(self.evaluation.is_complete, self._cells(variant)))

    def _report_key(self, variant: Variant) -> str:
        return digest_of([self._weights_key(variant), variant.seed])

    def _model_of(self, variant: Variant, cells: list[Cell]) -> LanguageModel:
        """The variant's model: dense, opened where it was made, or compressed here."""
        if variant.is_dense:
            return self.model
        if not variant.reference:
            return self._compressed(variant, cells)
        with self._timed("load", variant.label):
            self.observer.stage(f"loading {variant.label}", 1)
            model = self.others.open(variant)
        facts = describe_model(variant.label, model, variant.reference)
        self.journal.add_artifact(self._report_key(variant), model.info.digest, facts)
        return model

    def _compressed(self, variant: Variant, cells: list[Cell]) -> TransformersModel:
        """The compressed model; records made with other bits of the same recipe are dropped, and said."""
        self.observer.stage(f"compressing {variant}", len(decoder_blocks(self.dense.network)))
        with self._timed("compress", variant.label):
            calibration = self._calibration_of(variant)
            compressed, report = self.compressor.compressed(variant.recipe, variant.seed, calibration)
        key = self._report_key(variant)
        known = self.journal.artifact(key)
        if known is not None and known[0] != report.digest:
            self.warnings.append(
                f"{variant.label}: compressing again gave other weights (another machine or thread count?); "
                "its earlier records were dropped and made anew"
            )
            self.journal.forget([cell.run_key for cell in cells])
        if known is None or known[0] != report.digest:
            self.journal.add_artifact(key, report.digest, as_json(report))
        return compressed

    def _compress_together(self, seed: int | None) -> None:
        """Without propagation one pass serves all recipes of a seed: their models go into the cache."""
        wanted = [
            variant.recipe
            for variant in variants_of(self.study)
            if variant.is_recipe and variant.seed == seed and self._is_wanted(variant)
        ]
        if len(wanted) > 1:
            self.observer.stage(f"compressing {len(wanted)} recipes", len(decoder_blocks(self.dense.network)))
            with self._timed("compress", "one pass"):
                self.compressor.compress_together(wanted, seed, self._calibration(seed))

    def _finish(self, started: str) -> StudyResult:
        study = self.study
        self.observer.stage("statistics", 1)
        records = self.journal.records()
        noise = self._noise(records)
        tasks = [describe_task(task, self.prompting) for task in self.tasks]
        if self.judging is not None:
            tasks += self.judging.described()
        with self._timed("statistics", "comparisons"):
            comparisons = compare_all(
                records,
                tasks,
                study.labels(),
                margin=study.margin,
                alpha=study.alpha,
                orders={name: rule.order for name, rule in self.rules.items()},
                same_weights=self._left_the_weights,
            )
        reports = self._reports()
        result = StudyResult(
            folder=self.folder,
            study={**study.model_dump(mode="json"), "hash": study.hash()},
            environment=environment(self.model if isinstance(self.model, TransformersModel) else None),
            timing={
                "started": started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": self.journal.seconds(),
                "compression_seconds": {r["digest"]: r.pop("seconds") for r in reports},
                "peak_memory_bytes": peak_memory(),
            },
            model=as_json(self.model.info),
            tasks=tasks,
            results=sorted(cell_results(records, tasks), key=lambda row: self._order(row, tasks)),
            comparisons=[as_json(comparison) for comparison in comparisons],
            overall=overall_by_recipe(comparisons),
            compression=reports,
            models=self._described(reports),
            warnings=[
                *self.warnings,
                *_warnings([self.model, *self.others.live.values()], study, records, reports),
                *(describe_noise(found, self.model.info.dtype) for found in noise),
            ],
            noise=noise,
            judge=None if self.judging is None else self.judging.summary,
            families=families(comparisons, study.labels(), correction=study.correction, alpha=study.alpha),
            agreement=agreement(records, study.labels()),
        )
        result.write()
        return result

    def _noise(self, records: pd.DataFrame) -> list[dict[str, Any]]:
        """The noise floor of every task with choices; in float32 there is none."""
        if self.model.info.dtype not in HALF_PRECISIONS:
            return []
        found = []
        dense = records[records["recipe"] == "dense"]
        for cell in self._cells(next(variants_of(self.study))):
            known = self.journal.noise(cell.run_key)
            if known is None:
                of_task = dense[dense["task"] == cell.task.name].set_index("item_id")
                recorded: Any = of_task[["response", "details"]].to_dict("index")
                items = self.evaluation.items[cell.task.name]
                known = noise_of_choices(self.model, cell.task, items, style_of(cell.task, self.prompting), recorded)
                if known is not None:
                    self.journal.add_noise(cell.run_key, known)
            found += [known] if known is not None else []
        return found

    def _order(self, row: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
        labels, names = ["dense", *self.study.labels()], [task["name"] for task in tasks]
        return labels.index(row["recipe"]), row["seed"] or 0, names.index(row["task"])

    def _described(self, reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Size and kind of every model, where models made elsewhere are among them."""
        if not self.study.others:
            return []
        dense = describe_model("dense", self.model, self.study.model)
        found = [dense, *(describe_recipe(dense, report) for report in reports)]
        for variant in variants_of(self.study):
            if variant.reference:
                known = self.journal.artifact(self._report_key(variant))
                assert known is not None, f"{variant} was never opened"
                found.append(known[1])
        return found

    def _left_the_weights(self, recipe: str) -> bool:
        """Whether a recipe changed no weight at all, with any seed; or another model is the dense one's files again."""
        if recipe in self.others.checkpoints:
            return self.others.checkpoints[recipe].digest == self.model.info.digest
        digests = {report["digest"] for report in self._reports() if report["recipe"] == recipe}
        return bool(digests) and digests == {weights_digest(self.dense.network)}

    def _reports(self) -> list[dict[str, Any]]:
        reports = []
        for variant in variants_of(self.study):
            if variant.is_recipe:
                known = self.journal.artifact(self._report_key(variant))
                assert known is not None, f"no report of {variant}"
                reports.append(known[1])
        return reports

    @contextmanager
    def _timed(self, stage: str, detail: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.journal.add_seconds(stage, detail, time.perf_counter() - started)


def _warnings(models: Sequence[LanguageModel], study: Study, records: Any, reports: list[dict[str, Any]]) -> list[str]:
    """Whatever a reader of the tables must know and could not see in them; `models` are the dense one and servers."""
    found = []
    info = models[0].info
    if info.source_precision != "float" and any(recipe.is_rounding for recipe in study.parsed_recipes()):
        found.append(
            f"the dense weights of {info.name} come from a file already rounded to {info.source_precision}: "
            "rounding them again says little about rounding the original"
        )
    if not study.propagate:
        found.append("calibration was not propagated: every statistic comes from the dense model")
    for model in models:
        found += getattr(model, "notes", ())
    if len(study.labels()) > 1:
        found.append(correction_note(study.labels(), study.correction, study.alpha))
    for report in reports:
        found += [f"{report['recipe']}: {warning}" for warning in report["warnings"]]
    found += loops(records)
    return list(dict.fromkeys([*found, *warnings_of(records)]))
