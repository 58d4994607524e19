"""A study as a person writes it (TOML or arguments) → a frozen, checked Study with a stable hash."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmkick.compression.recipe import Dense, Recipe, parse_recipe
from llmkick.errors import ConfigError, KickError
from llmkick.tasks.task import Task, get_task


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskSpec(_Frozen):
    """One task of a study; the keys are those of `get_task`."""

    name: str
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    shots: int | None = None
    window: int | None = None

    def make(self) -> Task:
        """The task itself. Raises ConfigError for what `get_task` refuses."""
        return get_task(**{key: value for key, value in self.model_dump().items() if value is not None})


class CalibrationSpec(_Frozen):
    """Where calibration windows come from; see `llmkick.compression.calibration.calibrate`."""

    source: str = "self"
    sequences: int = Field(default=32, ge=1)
    length: int = Field(default=512, ge=2)


class Study(_Frozen):
    """Dense model × recipes × calibration seeds × tasks, and how the verdict is reached."""

    name: str = "study"
    model: str
    dtype: str = "auto"
    device: str = "auto"
    prompting: str = "auto"
    recipes: tuple[str, ...]
    tasks: tuple[TaskSpec, ...]
    seeds: tuple[int, ...] = (0,)
    calibration: CalibrationSpec = CalibrationSpec()
    propagate: bool = True
    margin: float = Field(default=0.05, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)

    @field_validator("recipes", "seeds", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: Any) -> Any:
        """A task may be written as its bare name."""
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": task} if isinstance(task, str) else task for task in value)

    @field_validator("recipes")
    @classmethod
    def _recipes_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Canonical texts, without `dense`, which every study runs anyway."""
        recipes = [parse_recipe(text) for text in value]
        canonical = [str(recipe) for recipe in recipes if not isinstance(recipe, Dense)]
        _refuse_repeats("recipe", canonical)
        if not canonical:
            raise ConfigError("a study needs at least one recipe besides dense; see `kick methods`")
        return tuple(canonical)

    @field_validator("tasks")
    @classmethod
    def _tasks_can_be_made(cls, value: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        _refuse_repeats("task", [task.make().name for task in value])
        if not value:
            raise ConfigError("a study needs at least one task; see `kick tasks`")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        _refuse_repeats("seed", value)
        if not value:
            raise ConfigError("a study needs at least one calibration seed")
        return value

    def parsed_recipes(self) -> list[Recipe]:
        """The recipes as typed objects, in the study's order."""
        return [parse_recipe(text) for text in self.recipes]

    def hash(self) -> str:
        """sha256 over everything but the name."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The study as resolved, every default written out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _refuse_repeats(what: str, values: Sequence[Any]) -> None:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ConfigError(f"{what} {', '.join(repeated)} is listed twice")


def make_study(values: Mapping[str, Any]) -> Study:
    """A Study from plain values. Raises ConfigError naming the key."""
    return _validated(dict(values), text="", origin="study")


def load_study(path: Path) -> Study:
    """Read a study file. Raises ConfigError naming file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study file {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _validated({"name": path.stem, **values}, text=text, origin=str(path))


def _validated(values: dict[str, Any], *, text: str, origin: str) -> Study:
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, text, origin) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error
    except KickError as error:
        raise _located(error, text, origin) from error


def _located(error: KickError, text: str, origin: str) -> ConfigError:
    """Name the line that holds the value that an error quotes or begins with."""
    quoted = re.findall(r"'([^']+)'", str(error)) + re.findall(r"^[\w@:.+-]+", str(error))
    for number, line in enumerate(text.splitlines(), start=1):
        if any(value in line for value in quoted) and not line.lstrip().startswith("#"):
            return ConfigError(f"{origin}, line {number}: {error}")
    return ConfigError(f"{origin}: {error}")


def _describe(problem: Any, text: str, origin: str) -> str:
    location = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function"))]
    key = ".".join(map(str, location))
    line = line_of(text, location)
    where = f"{origin}, line {line}" if line else origin
    if problem["type"] == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {"tasks": TaskSpec, "calibration": CalibrationSpec}
        owner = owners.get(str(location[0]), Study)
        choices = ", ".join(owner.model_fields if len(location) > 1 else Study.model_fields)
        return f"{where}: unknown key {key!r}; choose from: {choices}"
    if problem["type"] == "missing":
        return f"{where}: {key!r} is missing"
    return f"{where}: {key}: {problem['msg']}, got {problem['input']!r}"


def line_of(text: str, location: Sequence[int | str]) -> int | None:
    """The line (from 1) of a TOML key, given its path, e.g. ("tasks", 0, "limit"); None when not found."""
    table, key = list(location[:-1]), location[-1]
    current: list[int | str] = []
    counts: dict[str, int] = {}
    best = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.fullmatch(r"\s*(\[\[?)\s*([\w.-]+)\s*\]\]?\s*(#.*)?", line)
        if header:
            name = header[2]
            current = list(name.split("."))
            if header[1] == "[[":
                current.append(counts.get(name, 0))
                counts[name] = counts.get(name, 0) + 1
            if current == list(location):
                best = number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(str(key))}[\"']?\s*=", line):
            return number
        elif not current and table and re.match(rf"\s*{re.escape(str(table[0]))}\s*=", line):
            best = number
    return best
