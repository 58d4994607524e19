"""The cost estimate of a study (cells, requests, tokens, hours, memory), computed without the model's weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
import torch

from llmkick.compression.recipe import Recipe, Recovered
from llmkick.compression.recoveries import LoRA
from llmkick.errors import ConfigError, KickError, one_line
from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, is_cached
from llmkick.models.checkpoints.meta_model import load_structure
from llmkick.models.language_model import ModelInfo
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.server_scheme import is_server
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.expected_work import PASSES_OF_A_STEP, trained_tokens
from llmkick.study.judging.questions import Estimate, estimate
from llmkick.study.model_speed import machine_speed
from llmkick.study.power_warnings import calibrated_seeds, warn_of_easy_questions, warn_of_low_power
from llmkick.study.request_tokens import request_tokens
from llmkick.study.results.multiplicity import family_size
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.study.results.warnings import uncalibrated
from llmkick.study.spec.axes import CalibrationSetting
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import BATCH_ITEMS
from llmkick.tasks.prompting import resolve_prompting
from llmkick.tasks.task import Item, Task

# Operations of a recovery without training for each weight.
OPERATIONS_OF_A_RECOVERY = 60_000.0


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The cost of one task for one model: items, requests, tokens and hours. None means unknown."""

    name: str
    items: int | None = None
    requests: int | None = None
    tokens: int | None = None
    hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a study with `models` models, each on every task. None means unknown; `unknown` has the reasons."""

    study: Study
    tasks: Sequence[TaskPlan]
    models: int
    parameters: int | None
    calibration_tokens: int
    compression_hours: float | None
    memory_bytes: int | None
    judging: Estimate | None = None
    unknown: Sequence[str] = field(default_factory=tuple)
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def cells(self) -> int:
        """The number of cells: models × tasks."""
        return self.models * len(self.tasks)

    def total(self, name: str) -> float | None:
        """Return the sum of a column over tasks and models, or None if the value of a task is unknown."""
        values = [getattr(task, name) for task in self.tasks]
        return None if None in values else self.models * sum(values)

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        requests, tokens, hours = self.total("requests"), self.total("tokens"), self.total("hours")
        both = None if hours is None or self.compression_hours is None else hours + self.compression_hours
        memory = psutil.virtual_memory().total
        levels = " and calibration" if any(level.axes for level in self.study.recipe_levels()) else ""
        return [
            f"{self.models} models (the dense one, each recipe with each seed{levels}, each other model) × "
            f"{len(self.tasks)} tasks = {self.cells} cells",
            f"requests: {_count(requests)}; tokens: {_count(tokens)} asked and answered, "
            f"{self.calibration_tokens:,} a seed to calibrate",
            f"hours on this machine: {_hours(both)} ({_hours(hours)} asking, {_hours(self.compression_hours)} "
            "compressing), from the speed of a matrix product here: right within a factor of three",
            f"memory: {_gigabytes(self.memory_bytes)} needed, {_gigabytes(memory)} here"
            + (" – too little" if self.memory_bytes is not None and self.memory_bytes > memory else ""),
            *([] if self.judging is None else [self.judging.line()]),
            *(["at most: it stops when decided"] if self.study.stop == "decided" else []),
            *(f"unknown: {reason}" for reason in self.unknown),
            *(f"warning: {warning}" for warning in self.warnings),
        ]


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _hours(value: float | None) -> str:
    return "?" if value is None else f"{value:.2g}"


def _gigabytes(value: int | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f} GB"


def plan_study(study: Study) -> Plan:
    """Estimate the cost of a study. A value that needs unavailable data is unknown, and the plan has the reason."""
    unknown: list[str] = []
    device = resolve_device(study.device)
    dtype = resolve_dtype(study.dtype, device)
    model = _weightless(study.model, unknown)
    parameters = model.info.parameters if model is not None else _guessed_parameters(study.model, unknown)
    speed = machine_speed(dtype, device)
    levels = study.recipe_levels()
    specs = study.task_specs()
    made = [spec.make() for spec in specs]
    tasks = [
        _plan_task(task, spec.limit, model, study, parameters, speed, unknown)
        for task, spec in zip(made, specs, strict=True)
    ]
    calibration = _calibration_tokens([level.calibration for level in levels])
    if study.others:
        unknown.append(f"the sizes of {', '.join(study.labelled_others())}: counted as large as the dense model")
    compressing = None
    if parameters is not None:
        work = sum(
            _operations(level.recipe, parameters, level.calibration) * _runs(level.recipe, study) for level in levels
        )
        compressing = work / speed / 3600
    models = 1 + sum(_runs(level.recipe, study) for level in levels) + len(study.others)
    return Plan(
        study=study,
        tasks=tasks,
        models=models,
        parameters=parameters,
        calibration_tokens=calibration,
        compression_hours=compressing,
        memory_bytes=_memory(
            parameters, dtype, model, max((_tokens_of(level.calibration) for level in levels), default=0)
        ),
        judging=None if study.judge is None else _judging(study, models, unknown),
        unknown=tuple(dict.fromkeys(unknown)),
        warnings=(*uncalibrated(study), *warn_of_easy_questions(made, parameters), *_warnings(made, study)),
    )


def _judging(study: Study, models: int, unknown: list[str]) -> Estimate | None:
    try:
        return estimate(study, models=models)
    except KickError as error:  # no data
        unknown.append(f"what judging costs: {error}")
        return None


def _warnings(tasks: Sequence[Task], study: Study) -> list[str]:
    judged: list[tuple[Task, Sequence[Item]]] = []
    for task in tasks:
        if task.metric not in CONTROL_METRICS:
            with contextlib.suppress(KickError):  # no local data: `_plan_task` reports the task as unknown
                judged.append((task, task.items()))
    family = family_size(study.labels(), study.correction)
    return warn_of_low_power(
        judged, seeds=calibrated_seeds(study), margin=study.margin, alpha=study.alpha, family_size=family
    )


def _runs(recipe: Recipe, study: Study) -> int:
    return len(study.seeds) if recipe.needs_calibration else 1


def _tokens_of(setting: CalibrationSetting) -> int:
    return setting.sequences * setting.length


def _calibration_tokens(settings: Sequence[CalibrationSetting]) -> int:
    """Return the tokens that are read or sampled for a seed: a smaller number of windows is part of a larger one."""
    largest: dict[tuple[str, int], int] = {}
    for setting in settings:
        text = setting.source, setting.length
        largest[text] = max(largest.get(text, 0), _tokens_of(setting))
    return sum(largest.values())


def _plan_task(
    task: Task,
    limit: int | None,
    model: TransformersModel | None,
    study: Study,
    parameters: int | None,
    speed: float,
    unknown: list[str],
) -> TaskPlan:
    try:
        items = task.items(model)
    except KickError as error:  # no data, or running text, whose windows need a tokenizer
        unknown.append(f"{task.name}: {error}")
        return TaskPlan(name=task.name, items=limit)
    if not items:
        return TaskPlan(name=task.name, items=0, requests=0, tokens=0, hours=0.0)
    style = resolve_prompting(model, study.prompting, required=task.prompting) if model is not None else "raw"
    size = request_tokens(task, items, style, model, in_order=study.stop == "never")
    requests = round(size.requests * len(items))
    if model is None:
        return TaskPlan(name=task.name, items=len(items), requests=requests)
    tokens = round((size.read + size.written) * len(items))
    passes = size.passed(min(len(items), BATCH_ITEMS)) * len(items)
    hours = None if parameters is None else 2 * parameters * passes / speed / 3600
    return TaskPlan(name=task.name, items=len(items), requests=requests, tokens=tokens, hours=hours)


def _weightless(reference: str, unknown: list[str]) -> TransformersModel | None:
    """Return a model with tokenizer and configuration but without weights, or None if they are unavailable."""
    if is_server(reference):
        unknown.append(f"the tokens of {reference}: only the server knows them")
        return None
    try:
        if reference in BUILTIN_MODELS and not is_cached(reference):
            raise ConfigError("it is not fetched yet; any other command with it fetches it (93 MB)")
        structure = load_structure(reference)
    except Exception as error:  # noqa: BLE001 - the rest of the plan is valid without the model
        unknown.append(f"tokenizer and configuration of {reference}: {one_line(error, 200)}")
        return None
    info = ModelInfo(
        name=reference,
        revision="",
        digest="",
        architecture=type(structure.network).__name__,
        parameters=structure.parameters,
        dtype="",
    )
    return TransformersModel.wrap(structure.network, structure.tokenizer, info)


def _guessed_parameters(reference: str, unknown: list[str]) -> int | None:
    """Return the number of parameters from the name of a model: `vicuna-7b` → 7e9."""
    match = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", reference.rpartition("/")[2].lower())
    if match is None:
        unknown.append(f"the size of {reference}")
        return None
    size = float(match[1]) * {"b": 1e9, "m": 1e6}[match[2]]
    unknown.append(f"the size of {reference}: taken from its name, {size:.3g} parameters")
    return int(size)


def _operations(recipe: Recipe, parameters: int, calibration: CalibrationSetting) -> float:
    """Return the floating-point operations of one compression: calibration forward passes and Hessian products."""
    calibration_tokens = _tokens_of(calibration)
    if isinstance(recipe, Recovered):
        base = _operations(recipe.base, parameters, calibration)
        if not isinstance(recipe.recovery, LoRA):
            # Eigendecompositions, or the products of a refit, cost about as much as so many products of a layer.
            return max(base, 6.0 * parameters * calibration_tokens) + OPERATIONS_OF_A_RECOVERY * parameters
        return base + 2.0 * PASSES_OF_A_STEP * parameters * trained_tokens(recipe.recovery, calibration)
    if not recipe.needs_calibration:
        return 20.0 * parameters
    # Each block runs twice, before and after it is compressed.
    forwards = 4.0 * parameters * calibration_tokens
    # A Hessian update (inputs × inputs per token) costs about as much as a square layer. The factorisation costs
    # little in comparison.
    return forwards + (2.0 * parameters * calibration_tokens if recipe.needs_hessian else 0.0)


def _memory(
    parameters: int | None, dtype: torch.dtype, model: TransformersModel | None, calibration_tokens: int
) -> int | None:
    """Return the memory in bytes for dense and compressed weights and the calibration activations between blocks."""
    if parameters is None:
        return None
    width = 4096 if model is None else int(model.network.config.get_text_config(decoder=True).hidden_size)
    return int(2 * parameters * dtype.itemsize + 2 * calibration_tokens * width * dtype.itemsize + 1e9)
