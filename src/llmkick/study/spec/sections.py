"""The sections of a study file: tasks, calibration, recovery, servers and judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmkick.compression.recoveries import Objective, Training
from llmkick.errors import ConfigError
from llmkick.models.server_scheme import is_server
from llmkick.study.spec.model_names import parse_if_server
from llmkick.study.spec.source_lines import LocatedError, Location, errors_at
from llmkick.tasks.judge.clients import DEFAULT_KEY_ENV
from llmkick.tasks.judge.prompts import JudgeProtocol
from llmkick.tasks.registry import get_task
from llmkick.tasks.renaming import renamed
from llmkick.tasks.task import PROTOCOLS, Task, TaskProtocol


class Frozen(BaseModel):
    """A frozen model with strict types that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def refuse_axis(location: Location, levels: Sequence[str | int]) -> None:
    """Raise ConfigError for an axis without levels, or with a level that is listed twice."""
    if not levels:
        raise LocatedError("an empty list; give a value, or several values as an axis", location)
    for index, level in enumerate(levels):
        if level in levels[:index]:
            raise LocatedError(f"{level} is listed twice", (*location, index))


# Tags of the two forms of a setting. They are no part of the location of a wrong value.
FORMS = ("_one value", "_several values")


def _form(value: object) -> str:
    return FORMS[isinstance(value, list)]


# A setting with one value, or with a list of values, which is an axis of the study.
_Text = Annotated[Annotated[str, Tag(FORMS[0])] | Annotated[list[str], Tag(FORMS[1])], Discriminator(_form)]
_Count = Annotated[int, Field(ge=1)]
_Counts = Annotated[Annotated[_Count, Tag(FORMS[0])] | Annotated[list[_Count], Tag(FORMS[1])], Discriminator(_form)]
_Length = Annotated[int, Field(ge=2)]
_Lengths = Annotated[Annotated[_Length, Tag(FORMS[0])] | Annotated[list[_Length], Tag(FORMS[1])], Discriminator(_form)]
_Shots = Annotated[Annotated[int | None, Tag(FORMS[0])] | Annotated[list[int], Tag(FORMS[1])], Discriminator(_form)]


class TaskSpec(Frozen):
    """A task of a study: its keys are the arguments of `get_task`, and `id`, the task's name if it has another.

    Several numbers of `shots` are an axis: `study.spec.axes.task_levels` returns a task for each.
    """

    name: str
    source: str = "pocket"
    protocol: TaskProtocol = "strict"
    limit: int | None = None
    seed: int = 0
    shots: _Shots = None
    window: int | None = None
    unit: str | None = None
    evidence_tokens: int | None = None
    words: int | None = None
    bucket_words: list[int] | None = None
    per_bucket: int | None = None
    answer_line: str | None = None
    max_new_tokens: int | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | dict[str, str] | None = None
    id: str | None = None

    @field_validator("shots")
    @classmethod
    def _one_level_is_no_axis(cls, value: int | list[int] | None) -> int | list[int] | None:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def make(self) -> Task:
        """Return the task of this specification, named by its `id`. Raises the ConfigErrors of `get_task`."""
        task = get_task(**{key: value for key, value in self.model_dump(exclude={"id"}).items() if value is not None})
        return task if self.id is None else renamed(task, self.id)


def task_specs(
    names: Sequence[str], *, source: str = "pocket", protocol: str = "strict", limit: int | None = None, seed: int = 0
) -> tuple[TaskSpec, ...]:
    """Return specifications of the named tasks, all with the same source, protocol, limit and sample seed.

    A `Study` accepts the specifications directly, and `spec.make()` returns the task. Raises ConfigError for an
    unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r}; choose from: {', '.join(PROTOCOLS)}")
    return tuple(TaskSpec(name=name, source=source, protocol=protocol, limit=limit, seed=seed) for name in names)


class CalibrationSpec(Frozen):
    """The source and size of the calibration windows; see `llmkick.compression.walk.calibration.calibrate`.

    `sequences` windows of `length` tokens each. A list of values is an axis, see `study.spec.axes`.
    """

    source: _Text = "auto"
    sequences: _Counts = 32
    length: _Lengths = 512

    @field_validator("source", "sequences", "length")
    @classmethod
    def _levels_differ(cls, value: str | int | list[str] | list[int], info: ValidationInfo) -> object:
        """Refuse an axis without levels or with a level twice; a single level is no axis."""
        if not isinstance(value, list):
            return value
        refuse_axis(("calibration", str(info.field_name)), value)
        return value[0] if len(value) == 1 else value


class RecoverySpec(Frozen):
    """The settings of recipes that are trained, `wanda@2:4+lora`; see docs/recovery.md."""

    steps: int = Field(default=Training().steps, ge=0)
    learning_rate: float = Field(default=Training().learning_rate, gt=0, le=1)
    objective: Objective = Training().objective
    batch: int = Field(default=Training().batch, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0, lt=1e6)

    def training(self) -> Training:
        """Return the settings as those of a recipe."""
        return Training(**self.model_dump())


class ServerSpec(Frozen):
    """The settings for requests to model servers, `timeout` in seconds; see `llmkick.models.server.endpoint`."""

    timeout: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=8, ge=1, le=256)
    attempts: int = Field(default=5, ge=1, le=20)


class JudgeSpec(Frozen):
    """The judge of the generated answers; see docs/judge.md. `timeout` is in seconds."""

    model: str
    protocol: JudgeProtocol = "strict"
    # "dense", one answer file for all judged tasks, or one answer file per task.
    reference: str | dict[str, str] = "dense"
    replicates: int = Field(default=1, ge=1, le=100)
    concurrency: int = Field(default=4, ge=1, le=256)
    # Number of prompt and reply tokens after which no new judgement starts.
    budget: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=16)
    timeout: float = Field(default=120.0, gt=0)
    attempts: int = Field(default=6, ge=1, le=100)
    api_key_env: str = DEFAULT_KEY_ENV

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, value: str) -> str:
        """Refuse other values without showing them, because the value may be an API key."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            with errors_at("judge", "api_key_env"):
                raise ConfigError("api_key_env is the name of an environment variable, never the key itself")
        return value

    @model_validator(mode="after")
    def _can_be_asked(self) -> JudgeSpec:
        with errors_at("judge", "model"):
            parse_if_server(self.model)
        local = not is_server(self.model)
        if local and self.replicates > 1:
            with errors_at("judge", "replicates"):
                raise ConfigError("a local judge decodes greedily: replicates beyond 1 would all be the same")
        if local and self.temperature:
            with errors_at("judge", "temperature"):
                raise ConfigError("a local judge decodes greedily; leave temperature out")
        return self
