"""The policy of a gate: candidate, reference, tasks, margin and budget, from `gate.toml` or plain values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from llmkick.errors import ConfigError
from llmkick.files import named_path
from llmkick.models.thoughts import Thinking
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.study.spec.axes import task_levels
from llmkick.study.spec.model_names import label_others, parse_if_server
from llmkick.study.spec.sections import Frozen, ServerSpec, TaskSpec
from llmkick.study.spec.source_lines import errors_at
from llmkick.study.spec.study import Study, validated_study
from llmkick.study.spec.validation import validated
from llmkick.tasks.prompting import PromptingChoice

STORED_SUFFIX = ".jsonl"


class Budget(Frozen):
    """The limits of a gate: items of each task, and minutes of wall time for everything. None means no limit."""

    items: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class GatePolicy(Frozen):
    """A candidate `model`, the `reference` that it must match, the tasks, and the rules of the decision.

    `reference` is a model, or a `.jsonl` file with the stored answers of a model.
    """

    name: str = "gate"
    model: str
    reference: str
    tasks: tuple[TaskSpec, ...]
    margin: float = Field(default=0.05, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    prompting: PromptingChoice = "auto"
    thinking: Thinking = "off"
    dtype: str = "auto"
    device: str = "auto"
    server: ServerSpec = ServerSpec()
    budget: Budget = Budget()

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: object) -> object:
        """Convert a task that is given only by its name."""
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": task} if isinstance(task, str) else task for task in value)

    @model_validator(mode="after")
    def _models_are_named(self) -> GatePolicy:
        for key, reference in (("model", self.model), ("reference", self.reference)):
            with errors_at(key):
                if not reference.strip():
                    raise ConfigError("is empty; name a model")
                parse_if_server(reference)
        with errors_at("model"):
            if is_stored(self.model):
                raise ConfigError(f"{self.model} is a file of stored answers; the candidate has to be a model")
            label_others([self.model], taken=())
        with errors_at("reference"):
            if is_stored(self.reference) and not named_path(self.reference).is_file():
                raise ConfigError(
                    f"there is no file {self.reference}; `kick gate --store-reference FILE` makes one from a model"
                )
        return self

    @property
    def label(self) -> str:
        """The name of the candidate in tables."""
        return next(iter(label_others(self._others(), taken=("dense",))))

    def study_values(self) -> dict[str, object]:
        """Return the values of the study that answers the question of this policy."""
        tasks = [spec.model_dump(exclude_none=True) for spec in self.tasks]
        if self.budget.items is not None:
            for task in tasks:
                task["limit"] = min(self.budget.items, task.get("limit", self.budget.items))
        return {
            **self.model_dump(include={"name", "margin", "alpha", "prompting", "thinking", "dtype", "device"}),
            "model": self.reference,
            "others": self._others(),
            "tasks": tasks,
            "server": self.server.model_dump(),
            "stop": "decided",
        }

    def study(self) -> Study:
        """Return the study: the reference as its dense model, the candidate as an external model."""
        return self._study(text="", origin=f"policy {self.name}")

    def _study(self, *, text: str, origin: str) -> Study:
        study = validated_study(self.study_values(), text=text, origin=origin)
        for index, spec in enumerate(study.tasks):
            if any(level.spec.make().metric in CONTROL_METRICS for level in task_levels([spec])):
                raise ConfigError(f"{origin}: tasks.{index}: {spec.name} has no verdict, so a gate cannot ask it")
        return study

    def _others(self) -> list[str]:
        """Return the candidate for `others`; a study gives the name `dense` to its reference."""
        ((label, reference),) = label_others([self.model], taken=()).items()
        return [f"candidate={reference}" if label == "dense" else self.model]


def is_stored(reference: str) -> bool:
    """Return whether a reference names a file of stored answers."""
    return reference.endswith(STORED_SUFFIX)


def make_policy(values: Mapping[str, object], *, text: str = "", origin: str = "policy") -> GatePolicy:
    """Return the policy of plain values, which are those of a file with this text.

    Raises ConfigError with the file, line and key of the wrong value.
    """
    values = {key: value for key, value in values.items() if value is not None}
    if "model" not in values:
        raise ConfigError(f"{origin}: model is missing: name the candidate in the policy or with --model")
    sections: dict[str, type[Frozen]] = {"tasks": TaskSpec, "server": ServerSpec, "budget": Budget}
    policy = validated(GatePolicy, values, sections=sections, text=text, origin=origin)
    policy._study(text=text, origin=origin)
    return policy


def load_policy(path: Path, overrides: Mapping[str, object] | None = None, *, needs_model: bool = True) -> GatePolicy:
    """Read a policy file; `overrides` replace its values, and those that are None do not.

    Without a candidate, `needs_model=False` takes the reference for one.
    Raises ConfigError with the file, line and key of the wrong value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}") from error
    try:
        values: dict[str, object] = {"name": path.stem, **tomllib.loads(text)}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key, value in (overrides or {}).items():
        if isinstance(value, Mapping):
            given, changes = values.get(key, {}), {name: entry for name, entry in value.items() if entry is not None}
            if changes:
                values[key] = {**given, **changes} if isinstance(given, Mapping) else changes
        elif value is not None:
            values[key] = value
    if not needs_model:
        values.setdefault("model", values.get("reference"))
    return make_policy(values, text=text, origin=str(path))
