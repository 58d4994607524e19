"""Preparation of a study: claim its folder, load its model, and run all checks before the long computations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from llmkick.compression.recipe import is_trained
from llmkick.compression.storage.whole_model import COPIES_OF_TRAINING, check_memory_of_training
from llmkick.compression.training.recover import check_trainable, check_training
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import check_compressible, check_recipe_fits
from llmkick.errors import ConfigError
from llmkick.files import require_space, write_text_atomically
from llmkick.models.language_model import LanguageModel
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.cells import Variant, style_of
from llmkick.study.journal.journal import Journal
from llmkick.study.judging.judging import Judging, judge_of
from llmkick.study.power_warnings import calibrated_seeds, warn_of_easy_questions, warn_of_low_power
from llmkick.study.progress import Observer, show_plan
from llmkick.study.results.axes import summaries_of
from llmkick.study.results.multiplicity import family_size
from llmkick.study.results.records import CONTROL_METRICS, Artifact
from llmkick.study.running.calibrations import calibration_windows, pocket_notes, recorded_windows, windows_wanted
from llmkick.study.running.context import StudyContext
from llmkick.study.running.early_stopping import StoppingRule, stopping_rules
from llmkick.study.running.evaluation import Evaluation
from llmkick.study.running.external_models import ExternalModels
from llmkick.study.running.forecasting import forecast_study
from llmkick.study.running.keys import StudyKeys
from llmkick.study.running.metadata import note_run
from llmkick.study.spec.axes import CalibrationSetting, calibration_settings
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import refuse_unanswerable
from llmkick.tasks.task import Item, Task

# Bytes: a journal and a report rarely need more.
SPACE_NEEDED = 200_000_000


class ModelSource(Protocol):
    """Provides the dense model of a study, in this process or on the workers of a cluster."""

    def load(self, study: Study, observer: Observer) -> LanguageModel:
        """Load the dense model, or return a proxy whose answers come from workers."""
        ...

    def calibrate(self, setting: CalibrationSetting, seed: int, observer: Observer) -> Calibration:
        """Return the calibration windows of a setting and a seed."""
        ...

    def dense_digest(self) -> str:
        """Return the digest of the dense weights, for comparison with the digests of compressed models."""
        ...


def open_journal(study: Study, folder: Path) -> Journal:
    """Claim a folder for a study and open its journal.

    Raises ConfigError if the folder is not writable, has too little disk space, belongs to another study, or is in use
    by another process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error}; give another --out") from error
    require_space(folder, SPACE_NEEDED, "a run")
    journal = Journal(folder, alone=True)
    try:
        text = study.to_toml()
        journal.claim(study.hash(), text)
        write_text_atomically(folder / "study.toml", text)
    except OSError as error:
        journal.close()
        raise ConfigError(f"cannot write to {folder}: {error}; make room or give another --out") from error
    except BaseException:
        journal.close()
        raise
    return journal


def prepare(
    study: Study,
    *,
    folder: Path,
    journal: Journal,
    observer: Observer,
    source: ModelSource,
    seeds: Sequence[int] = (),
    visited_share: float = 1.0,
    searched_levels: int | None = None,
) -> StudyContext:
    """Load and check everything that a study needs, including calibration windows for the additional `seeds`.

    visited_share: of the compressed models, what a search is expected to visit. searched_levels: the most of a method.
    Raises ConfigError, ModelError or DataError before the long computations start.
    """
    tasks = [spec.make() for spec in study.task_specs()]
    judging = _judging(study, tasks, journal, observer)
    keys, warnings = _load(study, tasks, journal=journal, observer=observer, source=source)
    # Too few worked examples must fail before calibration text is sampled, which can take long, and a missing or short
    # calibration text before the dense model is asked anything.
    items = {task.name: task.items(keys.model) for task in keys.tasks}
    keys = replace(keys, rules=_rules(keys, items, judging))
    wanted = windows_wanted(keys, seeds)
    keys = replace(keys, calibrations=recorded_windows(wanted, keys.model, journal))
    forecast, announcement = forecast_study(keys, items, journal, wanted=wanted, chance=visited_share)
    show_plan(observer, forecast, announcement)
    calibrations = calibration_windows(
        wanted, keys, journal=journal, observer=observer, source=source, forecast=forecast
    )
    keys = replace(keys, calibrations=calibrations)
    notes = warn_of_easy_questions(keys.tasks, keys.model.info.parameters)
    notes += pocket_notes(calibrations, keys.model, keys.tasks) if keys.calibrates else []
    summaries = summaries_of(study, keys.tasks, keys.prompting)
    summaries += judging.task_summaries() if judging is not None else []
    note_run(journal, model=keys.model, tasks=keys.tasks, summaries=summaries, items=items, prompting=keys.prompting)
    _warn(observer, [*notes, *_power_notes(keys, items, seeds, searched_levels)])
    evaluation = Evaluation(
        journal=journal,
        model_name=keys.model.info.name,
        items=items,
        prompting=keys.prompting,
        observer=observer,
        dense=keys.model,
        dense_keys={cell.task.name: cell.run_key for cell in keys.cells(Variant())},
        rules=keys.rules,
        forecast=forecast,
    )
    return StudyContext(
        study=study,
        folder=folder,
        observer=observer,
        journal=journal,
        judging=judging,
        keys=keys,
        evaluation=evaluation,
        dense_digest=source.dense_digest,
        forecast=forecast,
        warnings=(*warnings, *notes),
    )


def _warn(observer: Observer, notes: Sequence[str]) -> None:
    for note in notes:
        observer.warn(note)


def _power_notes(
    keys: StudyKeys, items: Mapping[str, Sequence[Item]], seeds: Sequence[int], searched_levels: int | None
) -> list[str]:
    """What is said of tasks that have too few items; `seeds` are those of a search among so many levels."""
    study = keys.study
    searched = searched_levels is not None  # a search has an alpha of its own and no families
    return warn_of_low_power(
        [(task, items[task.name]) for task in keys.tasks if task.metric not in CONTROL_METRICS],
        seeds=calibrated_seeds(study, seeds),
        margin=study.margin,
        alpha=study.alpha,
        searched_levels=searched_levels,
        family_size=1 if searched else family_size(study.labels(), study.correction),
    )


def _rules(keys: StudyKeys, items: Mapping[str, Sequence[Item]], judging: Judging | None) -> dict[str, StoppingRule]:
    study = keys.study
    if study.stop != "decided":
        return {}
    # A judge reads the answers of both models to every item, so judged tasks cannot stop early.
    names = [task.name for task in judging.judged] if judging is not None else []
    stopping = [task for task in keys.tasks if task.name not in names]
    family = family_size(study.labels(), study.correction)
    return stopping_rules(stopping, items, margin=study.margin, alpha=study.alpha, family_size=family)


def _judging(study: Study, tasks: Sequence[Task], journal: Journal, observer: Observer) -> Judging | None:
    """Return the judge of a study, or None; check the judge before a model is loaded or asked."""
    spec = study.judge
    if spec is None:
        return None
    judge = judge_of(spec, dtype=study.dtype, device=study.device)
    judging = Judging(spec=spec, judge=judge, tasks=tasks, journal=journal, observer=observer)
    observer.stage(f"asking for the judge {spec.model}", 1)
    judging.check()
    return judging


def _load(
    study: Study, tasks: Sequence[Task], *, journal: Journal, observer: Observer, source: ModelSource
) -> tuple[StudyKeys, list[str]]:
    """Load the models of a study, check them against its recipes and tasks, and return keys and task warnings."""
    external_models = ExternalModels(study=study)
    if study.others:
        observer.stage(f"looking for {', '.join(study.labelled_others())}", 1)
        external_models.find()
    observer.stage(f"loading {study.model}", 1)
    started = time.perf_counter()
    model = source.load(study, observer)
    journal.add_seconds("load", study.model, time.perf_counter() - started)
    if study.recipes:
        _check_recipes(study, model, journal)
    prompting = external_models.prompting(model)
    fitted, warnings = _with_comparable_units(
        study, tasks, external_models.with_other_tokens(model) if study.others else []
    )
    for task in fitted:
        refuse_unanswerable(model, task, prompting=style_of(task, prompting))
    external_models.check(model, fitted, prompting)
    keys = StudyKeys(
        study=study,
        model=model,
        tasks=fitted,
        external_models=external_models,
        prompting=prompting,
        calibrations={},
    )
    return keys, warnings


def _with_comparable_units(
    study: Study, tasks: Sequence[Task], different: Sequence[str]
) -> tuple[list[Task], list[str]]:
    """Convert perplexity to bits per byte if a model tokenizes text differently from the dense model.

    Returns the tasks and the warnings about the conversion.
    """
    converted = {
        place: spec.model_copy(update={"unit": "bytes"}).make()
        for place, spec in enumerate(study.task_specs())
        if different and spec.name.startswith("perplexity") and not spec.unit
    }
    warnings = [
        f"perplexity is measured in bits per byte: the tokens of {', '.join(different)} are not the dense model's"
    ]
    return [converted.get(place, task) for place, task in enumerate(tasks)], warnings if converted else []


def _check_recipes(study: Study, model: LanguageModel, journal: Journal) -> None:
    assert isinstance(model, TransformersModel), "the compressor refuses any other"
    blocks = decoder_blocks(model.network)
    check_compressible(model.network, blocks, allow_partial=study.allow_partial)
    is_here = not _is_elsewhere(model)
    placeholder = Calibration(tokens=torch.zeros(1, 2, dtype=torch.long).numpy(), source="", seed=0)
    for recipe in study.parsed_recipes():
        check_recipe_fits(recipe, blocks, placeholder)
        if is_here:  # otherwise the worker that has the weights checks them
            check_trainable(recipe, model)
        for setting in calibration_settings(study.calibration):
            check_training(recipe, setting.sequences, setting.length)
    trained_before = {(artifact.recipe or "").partition(" [")[0] for artifact in journal.artifacts(Artifact)}
    if is_here and not _trained(study) <= trained_before:
        check_memory_of_training(model)
    longest = max(setting.length for setting in calibration_settings(study.calibration))
    if longest > model.max_tokens:
        raise ConfigError(
            f"calibration length {longest} exceeds the context of {model.info.name}, {model.max_tokens} tokens"
        )


def _is_elsewhere(model: TransformersModel) -> bool:
    """Return whether a model is a proxy: its weights, and so its device, are those of a worker on a cluster."""
    return model.device.type != "meta" and all(parameter.is_meta for parameter in model.network.parameters())


def has_training(study: Study) -> bool:
    """Return whether a recipe of the study trains the whole network."""
    return bool(_trained(study))


def _trained(study: Study) -> set[str]:
    """Return the recipes of the study that train the whole network."""
    return {str(recipe) for recipe in study.parsed_recipes() if is_trained(recipe)}


def copies_beside(study: Study) -> float:
    """Return what a study makes beside the dense model in memory, in sizes of its weights."""
    return COPIES_OF_TRAINING if has_training(study) else 1.0
