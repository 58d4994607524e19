"""Provenance of a run: model, study, data, machine and time, as titled lists of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from llmkick.report import formatting
from llmkick.report.models import model_facts
from llmkick.study.results.records import Environment, Timing
from llmkick.study.results.results import StudyResult

Facts = list[tuple[str, str]]


def sections(result: StudyResult) -> list[tuple[str, Facts]]:
    """All provenance in results.json: everything except the results themselves."""
    study = {key: value for key, value in result.study.facts.items() if key not in ("tasks", "recipes")}
    return [
        ("Model", [*_model(result), *_facts(result.model.facts, skip=("name", "source_precision", "parameters"))]),
        *([("Models", model_facts(result))] if result.models else []),
        ("Study", [*_facts(study), ("recipes", ", ".join(result.study.recipes))]),
        ("Calibration", _calibration(result)),
        ("Judge", [] if result.judge is None else _facts(result.judge.facts, skip=("missing",))),
        ("Machine", _machine(result.environment)),
        ("Versions", _facts(result.environment.packages)),
        ("Time", _time(result.timing)),
    ]


def _machine(environment: Environment) -> Facts:
    memory = environment.memory_bytes
    facts = _facts(environment.facts, skip=("packages", *(("memory_bytes",) if memory else ())))
    return [*facts, ("memory", formatting.size(memory))] if memory else facts


def _time(timing: Timing) -> Facts:
    """When the run took place, its peak memory, and the wall time of each stage."""
    facts = _facts(timing.facts, skip=("seconds", "compression_seconds", "peak_memory_bytes"))
    peak = [("peak memory", formatting.size(timing.peak_memory_bytes))] if timing.peak_memory_bytes else []
    return [*facts, *peak, *_seconds(timing.seconds)]


def tasks(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Every setting of every task, as the columns and rows of a table."""
    facts = [task.facts for task in result.tasks]
    columns = list(dict.fromkeys(key for task in facts for key in task if key != "setting"))
    rows = [[_plain(task[key]) if task.get(key) is not None else "" for key in columns] for task in facts]
    return [key.replace("_", " ") for key in columns], rows


def source_note(result: StudyResult) -> str | None:
    """The note for all quantization results if the dense weights were already rounded; None otherwise."""
    precision = result.model.source_precision
    if precision == "float":
        return None
    return (
        f"The dense weights of {result.model.name} had already been rounded to {precision} when they came here. "
        "Rounding them again says little about rounding the original."
    )


def _model(result: StudyResult) -> Facts:
    model = result.model
    precision = model.source_precision
    rounded = "" if precision == "float" else " (the dense weights were already rounded to it)"
    facts = [("name", model.name), ("weights came as", precision + rounded)]
    if model.parameters is not None:
        facts.append(("parameters", f"{model.parameters:,}"))
    return facts


def _calibration(result: StudyResult) -> Facts:
    """The calibration text of each seed, and the recipes that used it."""
    users: dict[tuple[str, str], list[str]] = {}
    for report in result.compression:
        if report.calibration is not None:
            key = (f"{report.calibration_source}, seed {report.seed}", report.calibration)
            users.setdefault(key, []).append(report.recipe)
    facts = [(source, f"sha256 {digest}, for {', '.join(recipes)}") for (source, digest), recipes in users.items()]
    free = [report.recipe for report in result.compression if report.calibration is None]
    if free:
        facts.append(("without calibration", ", ".join(free)))
    return facts


def _seconds(seconds: Mapping[str, Mapping[str, float]]) -> Facts:
    """Wall time by stage, added up over all sessions of the run."""
    facts = []
    for stage, details in seconds.items():
        parts = ", ".join(f"{detail} {formatting.duration(value)}" for detail, value in details.items())
        facts.append((stage, f"{formatting.duration(sum(details.values()))} ({parts})"))
    return facts


def _facts(values: Mapping[str, JsonValue], skip: Sequence[str] = ()) -> Facts:
    return [
        (key.replace("_", " "), _plain(value)) for key, value in values.items() if key not in skip and value is not None
    ]


def _plain(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    return str(value)
