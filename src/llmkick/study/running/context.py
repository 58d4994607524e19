"""A study made ready: its folder claimed, its model loaded, all checked that can fail before anything takes hours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmkick.compression.recipe import Dense
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import check_recipe_fits
from llmkick.compression.walk.compress import artifact_key
from llmkick.errors import ConfigError
from llmkick.files import require_space, write_text_atomically
from llmkick.models.language_model import LanguageModel
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.cells import Cell, Variant, cells_of, digest_of, style_of, variants_of
from llmkick.study.journal.journal import Journal
from llmkick.study.judging.judging import Judging, judge_of
from llmkick.study.power_warnings import warn_of_low_power
from llmkick.study.progress import Observer
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.study.running.early_stopping import StoppingRule, stopping_rules
from llmkick.study.running.evaluation import Evaluation
from llmkick.study.running.executor import Executor, LocalExecutor
from llmkick.study.running.external_models import Others, answers_key
from llmkick.study.running.metadata import note_run
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import refuse_unanswerable
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Task

# A journal and a report rarely need more.
SPACE_NEEDED = 200_000_000


@dataclass(kw_only=True)
class PreparedStudy:
    """A study in its folder: its tasks, its dense model, and what its variants and cells are known by."""

    study: Study
    folder: Path
    observer: Observer
    executor: Executor = field(default_factory=LocalExecutor)
    tasks: list[Task] = field(default_factory=list)
    judging: Judging | None = None
    rules: dict[str, StoppingRule] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    journal: Journal = field(init=False)  # from `_open_folder` on
    model: LanguageModel = field(init=False)  # and what follows, from `_load` on
    others: Others = field(init=False)
    prompting: Prompting = field(init=False)
    evaluation: Evaluation = field(init=False)

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
        for line in warn_of_low_power(judged, margin=self.study.margin, alpha=self.study.alpha):
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

    def wanted(self, seed: int | None) -> list[Variant]:
        """The compressed variants of a seed that anything is left to be done with."""
        variants = [variant for variant in variants_of(self.study) if variant.is_recipe and variant.seed == seed]
        return [variant for variant in variants if self._is_wanted(variant)]

    def known_digest(self, variant: Variant) -> str | None:
        """The digest of a variant's weights when its records were made."""
        known = self.journal.artifact(self.report_key(variant))
        return None if known is None else known[0]

    @contextmanager
    def timed(self, stage: str, detail: str) -> Iterator[None]:
        """Note the time that a piece of work takes."""
        started = time.perf_counter()
        yield
        self.journal.add_seconds(stage, detail, time.perf_counter() - started)
