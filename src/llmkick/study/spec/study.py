"""The specification of a study: a frozen, validated `Study` from TOML or plain values, with a stable hash."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, get_args

import tomli_w
from pydantic import Field, field_validator, model_validator

from llmkick.compression.recipe import Dense, Recipe, is_trained, with_training
from llmkick.compression.registry import parse_recipe
from llmkick.errors import ConfigError
from llmkick.models.server_scheme import is_server
from llmkick.models.thoughts import Thinking
from llmkick.study.spec.axes import RecipeLevel, TaskLevel, recipe_levels, task_levels
from llmkick.study.spec.choices import Correction, Precision, Stop
from llmkick.study.spec.model_names import label_others, parse_if_server
from llmkick.study.spec.sections import CalibrationSpec, Frozen, JudgeSpec, RecoverySpec, ServerSpec, TaskSpec
from llmkick.study.spec.source_lines import LocatedError, errors_at
from llmkick.study.spec.task_checks import check_tasks
from llmkick.study.spec.validation import validated
from llmkick.tasks.judge.prompts import Judgeable
from llmkick.tasks.prompting import PromptingChoice, refuse_contradiction


class Study(Frozen):
    """The specification of a study: (dense, recipes × seeds, external models) × tasks, and the rules for verdicts."""

    name: str = "study"
    model: str
    dtype: str = "auto"
    device: str = "auto"
    prompting: PromptingChoice = "auto"
    # Whether models that can think before they answer are to do so.
    thinking: Thinking = "off"
    recipes: tuple[str, ...] = ()
    # External models for the comparison with the dense model: `reference` or `name=reference`.
    others: tuple[str, ...] = ()
    tasks: tuple[TaskSpec, ...]
    # Below 2³²: every generator accepts these seeds, and a column of doubles holds them exactly.
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (0,)
    calibration: CalibrationSpec = CalibrationSpec()
    recovery: RecoverySpec = RecoverySpec()
    propagate: bool = True
    allow_partial: bool = False  # compress a model even if recipes leave over a tenth of its block weights dense
    server: ServerSpec = ServerSpec()
    judge: JudgeSpec | None = None
    margin: float = Field(default=0.05, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    stop: Stop = "never"
    correction: Correction = "none"

    @field_validator("recipes", "others", "seeds", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: object) -> object:
        """Convert a task that is given only by its name."""
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": task} if isinstance(task, str) else task for task in value)

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        choices = get_args(Precision)
        if value not in choices:
            with errors_at("dtype"):
                raise ConfigError(f"unknown dtype {value!r}; choose from: {', '.join(choices)}")
        return value

    @field_validator("recipes")
    @classmethod
    def _recipes_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Return the recipes in canonical form, without `dense`, which every study runs."""
        recipes = []
        for index, text in enumerate(value):
            with errors_at("recipes", index):
                recipes.append(parse_recipe(text))
        _refuse_repeats("recipes", [str(recipe) for recipe in recipes])
        return tuple(str(recipe) for recipe in recipes if not isinstance(recipe, Dense))

    @field_validator("tasks")
    @classmethod
    def _tasks_can_be_made(cls, value: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        check_tasks(value)
        with errors_at("tasks"):
            if not value:
                raise ConfigError("a study needs at least one task; see `kick tasks`")
        return value

    @model_validator(mode="after")
    def _something_to_compare(self) -> Study:
        """Refuse a study without recipes and external models, and refuse repeated names."""
        if not self.recipes and not self.others:
            with errors_at("recipes"):
                raise ConfigError(
                    "a study needs at least one recipe besides dense, or another model in `others`; see `kick methods`"
                )
        with errors_at("model"):
            if is_server(self.model) and self.recipes:
                raise ConfigError(f"{self.model} is a server, whose model cannot be compressed here; leave recipes out")
            parse_if_server(self.model)
        with errors_at("others"):
            label_others(self.others, taken=("dense", *self.recipes))
        return self

    @model_validator(mode="after")
    def _one_protocol(self) -> Study:
        """Refuse two protocols in one study; the protocol `paper` sets the prompting to raw text."""
        protocols = [spec.protocol for spec in self.tasks]
        if len(set(protocols)) > 1:
            other = next(index for index, protocol in enumerate(protocols) if protocol != protocols[0])
            raise LocatedError(
                f"{protocols[other]!r} beside {protocols[0]!r}: scores of two protocols must not share a table; "
                "write two studies",
                ("tasks", other, "protocol"),
            )
        if "paper" in protocols:
            # The paper also uses a chat template for the instruction task.
            others = [spec for spec in self.tasks if spec.name.partition(":")[0] != "instruction"]
            if others:
                with errors_at("prompting"):
                    refuse_contradiction(self.prompting, "raw")
            if len(others) == len(self.tasks):
                object.__setattr__(self, "prompting", "raw")  # the study is frozen; this stores the resolved style
        return self

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        _refuse_repeats("seeds", value)
        with errors_at("seeds"):
            if not value:
                raise ConfigError("a study needs at least one calibration seed")
        return value

    @model_validator(mode="after")
    def _something_to_judge(self) -> Study:
        if self.judge is None:
            return self
        judged = self.judged_tasks()
        with errors_at("judge"):
            if not judged:
                raise ConfigError("none of the tasks is judged: add summarization or instruction, or leave [judge] out")
        if isinstance(self.judge.reference, dict):
            with errors_at("judge", "reference"):
                if set(self.judge.reference) != set(judged):
                    raise ConfigError(
                        f"files of reference answers for {', '.join(self.judge.reference) or 'no task'}; "
                        f"the judged tasks are {', '.join(judged)}"
                    )
        return self

    @model_validator(mode="after")
    def _one_seed_where_it_stops(self) -> Study:
        """Refuse early stopping with several seeds: the variance between seeds needs the same items for every seed."""
        calibrated = [text for text in self.recipes if parse_recipe(text).needs_calibration]
        if self.stop == "decided" and len(self.seeds) > 1 and calibrated:
            raise LocatedError(
                f"'decided' and {len(self.seeds)} calibration seeds do not go together: the spread over seeds is "
                'measured on the same items, and every seed would stop at others; give one seed, or stop = "never"',
                ("stop",),
            )
        return self

    def parsed_recipes(self) -> list[Recipe]:
        """Return the recipes as typed objects, in the study's order."""
        return [with_training(parse_recipe(text), self.recovery.training()) for text in self.recipes]

    def labelled_others(self) -> dict[str, str]:
        """Return short name → reference of the external models, in the study's order."""
        return label_others(self.others, taken=("dense", *(level.label for level in self.recipe_levels())))

    def recipe_levels(self) -> list[RecipeLevel]:
        """Return the recipes with every level of the calibration's axes."""
        return recipe_levels(self.parsed_recipes(), self.calibration)

    def task_levels(self) -> list[TaskLevel]:
        """Return the tasks with every level of their shots."""
        return task_levels(self.tasks)

    def task_specs(self) -> list[TaskSpec]:
        """Return the specification of every task that is asked."""
        return [level.spec for level in self.task_levels()]

    def judged_tasks(self) -> list[str]:
        """Return the names of the tasks whose answers the judge scores; none without a judge."""
        if self.judge is None:
            return []
        return [task.name for task in (spec.make() for spec in self.task_specs()) if isinstance(task, Judgeable)]

    def labels(self) -> list[str]:
        """Return the labels of all models that are compared with the dense model: recipes, then external models."""
        return [*(level.label for level in self.recipe_levels()), *self.labelled_others()]

    def hash(self) -> str:
        """Return the SHA-256 of the study without its name, its servers, its judge and `allow_partial`.

        The judge is left out because a user can add a judge to a finished run, and judgements have separate keys;
        `allow_partial` changes no weight.
        """
        content = self.model_dump(mode="json", exclude={"name", "server", "judge", "allow_partial"})
        # Defaults of these options are left out, because new options must not change the hash of older studies.
        for option in ("stop", "correction", "thinking"):
            if content[option] == Study.model_fields[option].default:
                del content[option]
        if not self.others:
            del content["others"]
        # As above; without a recipe that is trained these settings change nothing.
        if not any(map(is_trained, self.parsed_recipes())):
            del content["recovery"]
        for task in content["tasks"]:
            for option in _HASHED_WHERE_USED:
                if task[option] is None:
                    del task[option]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """Return the resolved study as TOML, including all defaults."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


_HASHED_WHERE_USED = (
    "id", "unit", "evidence_tokens", "words", "bucket_words", "per_bucket", "answer_line", "max_new_tokens", "split",
    "revision", "sha256",
)  # fmt: skip


def _refuse_repeats(key: str, values: Sequence[str | int]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise LocatedError(f"{value} is listed twice", (key, index))


def make_study(values: Mapping[str, object]) -> Study:
    """Return a Study from plain values. Raises ConfigError with the key of the wrong value."""
    return validated_study(values, text="", origin="study")


def load_study(path: Path) -> Study:
    """Read a study file. Raises ConfigError with the file, line and key of the wrong value."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the study file {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return validated_study({"name": path.stem, **values}, text=text, origin=str(path))


def validated_study(values: Mapping[str, object], *, text: str, origin: str) -> Study:
    """Return the Study of the values in a file with this text; errors name the line and the key there."""
    return validated(Study, values, sections=_SECTIONS, text=text, origin=origin)


_SECTIONS: Mapping[str, type[Frozen]] = {
    "tasks": TaskSpec,
    "calibration": CalibrationSpec,
    "recovery": RecoverySpec,
    "server": ServerSpec,
    "judge": JudgeSpec,
}
