"""Axes of a study: settings with several values. Each level is a compressed model or a task of its own, with a label.

A list of calibration values gives a model for each value, `wanda@0.5 [sequences=8]`; a list of shots a task for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llmkick.compression.recipe import Recipe
from llmkick.study.spec.sections import CalibrationSpec, TaskSpec

# Axis → the value of a level: {"calibration.sequences": 8} of a model, {"shots": 3} of a task.
Axes = Mapping[str, int | str]

Value = TypeVar("Value", int, str)

CALIBRATION_AXES = ("source", "sequences", "length")


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """The text of calibration windows without their number; `seed` is None for a method without calibration."""

    source: str
    length: int
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class CalibrationSetting:
    """One source and size of calibration windows: `sequences` windows of `length` tokens."""

    source: str
    sequences: int
    length: int

    def text(self, seed: int | None) -> CalibrationText:
        """Return the text that the windows are the beginning of."""
        return CalibrationText(source=self.source, length=self.length, seed=seed)


# Calibration windows: their setting and their seed.
Windows = tuple[CalibrationSetting, int]


@dataclass(frozen=True, kw_only=True)
class RecipeLevel:
    """A recipe with one calibration setting, the axes that it is a level of, and its label in tables."""

    label: str
    recipe: Recipe
    calibration: CalibrationSetting
    axes: Axes = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskLevel:
    """A task with one number of shots, and the axes that it is a level of; its `id` is its name in tables."""

    spec: TaskSpec
    axes: Axes = field(default_factory=dict)


def calibration_settings(spec: CalibrationSpec) -> list[CalibrationSetting]:
    """Return every combination of the values of a [calibration] section, in the order of the file."""
    values = itertools.product(_levels(spec.source), _levels(spec.sequences), _levels(spec.length))
    return [CalibrationSetting(source=source, sequences=count, length=length) for source, count, length in values]


def recipe_levels(recipes: Sequence[Recipe], spec: CalibrationSpec) -> list[RecipeLevel]:
    """Return each recipe with each calibration setting.

    A recipe without calibration comes once: its weights are those of every level.
    """
    settings = calibration_settings(spec)
    axes = [axis for axis in CALIBRATION_AXES if isinstance(getattr(spec, axis), list)]
    levels = []
    for recipe in recipes:
        for setting in settings if recipe.needs_calibration else settings[:1]:
            values = {axis: getattr(setting, axis) for axis in axes if recipe.needs_calibration}
            levels.append(
                RecipeLevel(
                    label=_label(str(recipe), {axis: _shown(value, spec) for axis, value in values.items()}),
                    recipe=recipe,
                    calibration=setting,
                    axes={f"calibration.{axis}": value for axis, value in values.items()},
                )
            )
    return levels


def task_levels(specs: Sequence[TaskSpec]) -> list[TaskLevel]:
    """Return each task with each of its numbers of shots; raises the ConfigErrors of `get_task`."""
    levels = []
    for spec in specs:
        if not isinstance(spec.shots, list):
            levels.append(TaskLevel(spec=spec))
            continue
        name = spec.id or spec.model_copy(update={"shots": spec.shots[0]}).make().name
        for shots in spec.shots:
            level = spec.model_copy(update={"shots": shots, "id": _label(name, {"shots": shots})})
            levels.append(TaskLevel(spec=level, axes={"shots": shots}))
    return levels


def _levels(value: Value | list[Value]) -> list[Value]:
    return value if isinstance(value, list) else [value]


def _label(name: str, values: Axes) -> str:
    levels = ", ".join(f"{axis}={value}" for axis, value in values.items())
    return f"{name} [{levels}]" if levels else name


def _shown(value: int | str, spec: CalibrationSpec) -> int | str:
    """Return the name of a file or folder instead of its path, unless two sources have that name."""
    if isinstance(value, int):
        return value
    names = [Path(source).name for source in _levels(spec.source)]
    return Path(value).name if names.count(Path(value).name) == 1 else value
