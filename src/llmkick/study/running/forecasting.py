"""The forecast of a study: its expected work, at the speed of the model here and with what earlier sessions took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from llmkick.compression.storage.cache import folder_of
from llmkick.compression.walk.compression_key import kept_key
from llmkick.compression.walk.finished_blocks import STATE_FILE
from llmkick.errors import KickError
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.advice import advice_for
from llmkick.study.announcement import Announcement, announce
from llmkick.study.cells import Cell, Variant, style_of, variants_of
from llmkick.study.expected_work import (
    JUDGING,
    LOADING_SHARE,
    STATISTICS,
    VERDICTS,
    ExpectedWork,
    asking,
    calibrating,
    calibration_key,
    cell_key,
    comparing,
    compressing,
    compression_key,
    judging,
    largest_of_texts,
    measuring_noise,
    pass_key,
)
from llmkick.study.forecast import Forecast
from llmkick.study.journal.journal import Journal
from llmkick.study.judging.questions import estimate
from llmkick.study.model_speed import ModelSpeed, expected_speed, machine_speed, measured_speed
from llmkick.study.parts import Part
from llmkick.study.results.records import Artifact
from llmkick.study.running.context import StudyContext
from llmkick.study.running.keys import StudyKeys
from llmkick.study.spec.axes import CalibrationText, Windows, calibration_settings
from llmkick.tasks.task import Item


def forecast_study(
    keys: StudyKeys,
    items: Mapping[str, Sequence[Item]],
    journal: Journal,
    *,
    wanted: Sequence[Windows],
    chance: float = 1.0,
) -> tuple[Forecast, Announcement]:
    """Forecast a study whose model is loaded, and announce what is left of it; `keys` has the windows that are known.

    wanted: all calibration windows. chance: the share of the compressed models that a search is expected to visit.
    """
    study, model = keys.study, keys.model
    speed = measured_speed(model)
    work = _expected(keys, items, wanted, speed)
    parts = _with_earlier_seconds(work.parts, journal)
    if chance < 1:
        parts = [replace(part, chance=chance) if _is_searched(part) else part for part in parts]
    is_known = speed is not None or any(part.cost != old.cost for part, old in zip(parts, work.parts, strict=True))
    forecast = Forecast(parts, is_rated=is_known)
    _skip_recorded(forecast, keys, items, journal)
    for text, setting in largest_of_texts(wanted).items():
        if (setting, text.seed) in keys.calibrations:
            forecast.end(calibration_key(text))
    variants = list(variants_of(study))
    advice = advice_for(study, work, calibrated=any(variant.seed is not None for variant in variants))
    return forecast, announce(work, forecast, advice=advice)


def _is_searched(part: Part) -> bool:
    return part.pool[0] in ("compress", VERDICTS, STATISTICS) or (part.pool[0] == "ask" and part.pool[2] != "dense")


def _expected(
    keys: StudyKeys, items: Mapping[str, Sequence[Item]], wanted: Sequence[Windows], speed: ModelSpeed | None
) -> ExpectedWork:
    study, model = keys.study, keys.model
    variants = list(variants_of(study))
    styles = {task.name: style_of(task, keys.prompting) for task in keys.tasks}
    stopping = {name: rule.settings for name, rule in keys.rules.items()}
    work = asking(model, keys.tasks, items, styles, variants, speed=speed, stopping=stopping)
    if isinstance(model, TransformersModel) and study.recipes:
        relative = speed or expected_speed(
            model.info.parameters, machine_speed(torch.float32, torch.device("cpu")), torch.float32
        )
        work += compressing(model, variants, calibration_settings(study.calibration)[0], speed=relative)
        work += calibrating(wanted, model.info, model.device, speed=speed)
    work += measuring_noise(model, keys.tasks, items, styles, speed=speed)
    work += comparing(variants, len(keys.tasks))
    if study.judge is not None:
        with suppress(KickError):
            work += judging(estimate(study, models=len(variants)).requests)
    return work


def _with_earlier_seconds(parts: Sequence[Part], journal: Journal) -> list[Part]:
    """The parts with the seconds that earlier sessions took, and others corrected as those on average were.

    What this session takes is measured against them, so a faster or slower machine shows at once.
    """
    measured: dict[str, float] = {}
    seconds = journal.seconds()
    recorded: dict[str, int] = {}
    for entry in journal.cells():
        recorded[entry.task] = recorded.get(entry.task, 0) + entry.records
    made: dict[str, int] = {}
    for artifact in journal.artifacts(Artifact):
        made[str(artifact.recipe)] = made.get(str(artifact.recipe), 0) + 1
    for part in parts:
        cost = _earlier_cost(part, seconds, recorded, made)
        if cost is not None:
            measured[part.key] = cost
    corrected = []
    for part in parts:
        like = [other for other in parts if other.key in measured and other.pool[:1] == part.pool[:1]]
        alike = [other for other in like if other.pool[:2] == part.pool[:2]] or like
        expected = sum(other.cost * other.steps for other in alike)
        took = sum(measured[other.key] * other.steps for other in alike)
        cost = measured.get(part.key, part.cost * took / expected if expected > 0 and took > 0 else part.cost)
        corrected.append(replace(part, cost=cost))
    return corrected


def _earlier_cost(
    part: Part, seconds: Mapping[str, Mapping[str, float]], recorded: Mapping[str, int], made: Mapping[str, int]
) -> float | None:
    if part.model or not part.steps:
        return None
    if part.pool[0] == "ask":
        took, count = seconds.get("evaluate", {}).get(part.pool[1]), recorded.get(part.pool[1], 0)
        return took / count if took and count else None
    if part.pool[0] == "compress":
        label = part.key.removeprefix("model ").partition(" (seed")[0]
        took, count = seconds.get("compress", {}).get(label), made.get(label, 0)
        return took / count / part.steps if took and count else None
    return None


def _skip_recorded(forecast: Forecast, keys: StudyKeys, items: Mapping[str, Sequence[Item]], journal: Journal) -> None:
    """Skip the records of earlier sessions, as far as they can be told before the calibration is known."""
    records = {(entry.recipe, entry.seed, entry.task): entry.records for entry in journal.cells()}
    labels = {artifact.recipe for artifact in journal.artifacts(Artifact)}
    done: dict[CalibrationText, bool] = {}
    for variant in variants_of(keys.study):
        left = False
        for task in keys.tasks:
            label = "dense" if variant.is_dense else variant.label
            count = records.get((label, variant.seed, task.name), 0)
            forecast.skip(cell_key(variant, task.name), count)
            if count >= len(items[task.name]):
                forecast.end(cell_key(variant, task.name))
            else:
                left = True
        is_done = not left and variant.label in labels
        if is_done:
            forecast.end(compression_key(variant))
        if variant.is_recipe:
            text = keys.text_of(variant)
            done[text] = done.get(text, True) and is_done
    for text in (text for text, is_done in done.items() if is_done):
        forecast.end(pass_key(text))


def skip_done(context: StudyContext, cells: Iterable[Cell], pending: Iterable[Cell]) -> None:
    """Tell the forecast of a study which cells are done, and which compressed models are in the cache."""
    forecast, waiting = context.forecast, {cell.run_key for cell in pending}
    wanted: dict[Variant, bool] = {}
    for cell in cells:
        forecast.skip(cell_key(cell.variant, cell.task.name), len(context.journal.done(cell.run_key)))
        context.evaluation.tell_forecast(cell)
        if context.evaluation.is_complete(cell):
            forecast.end(cell_key(cell.variant, cell.task.name))
        wanted[cell.variant] = wanted.get(cell.variant, False) or cell.run_key in waiting
    shares: dict[CalibrationText, list[float]] = {}
    for variant, is_wanted in wanted.items():
        of_text = shares.setdefault(context.keys.text_of(variant), []) if variant.is_recipe else []
        if not is_wanted:
            forecast.end(compression_key(variant))
        elif variant.is_recipe:
            of_text.append(_share_in_cache(context, variant))
            forecast.skip_share(compression_key(variant), of_text[-1])
    for text, of_text in shares.items():
        if of_text:
            forecast.skip_share(pass_key(text), min(of_text))
        else:
            forecast.end(pass_key(text))
    if context.judging is None:
        forecast.end(JUDGING)


def _share_in_cache(context: StudyContext, variant: Variant) -> float:
    """The share of a compression that the cache of compressed models has."""
    model = context.keys.model
    if not isinstance(model, TransformersModel) or model.device.type == "meta":
        return 0.0
    calibration = context.keys.calibration_of(variant)
    key = kept_key(model.info, model.device, variant.recipe, calibration, propagate=variant.propagate)
    with suppress(OSError, ValueError, KeyError):
        state = json.loads((folder_of(key) / STATE_FILE).read_text(encoding="utf-8"))
        return 1 - LOADING_SHARE if state.get("report") else 0.0
    return 0.0
