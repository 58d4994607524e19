"""The typed result of a study, with reading and writing of results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from llmkick.compression.levels import Level
from llmkick.errors import DataError
from llmkick.files import write_text_atomically
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.levels import level_of_text
from llmkick.study.results.records import (
    AgreementRow,
    ComparedModel,
    CompressionSummary,
    DenseModel,
    Environment,
    FailedCell,
    Family,
    JudgeSummary,
    NoiseRow,
    OverallVerdict,
    ResultRow,
    StudySettings,
    TaskSummary,
    Timing,
)
from llmkick.study.spec.model_names import label_others

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 1


def _comparison_tag(value: object) -> str:
    """Return the tag of a comparison.

    Files of version 0.1.0 have no `kind`, so the entry `outcome` identifies a perplexity comparison.
    """
    if isinstance(value, Mapping):
        return "_perplexity" if "outcome" in value else "_task"
    return "_perplexity" if isinstance(value, PerplexityComparison) else "_task"


_TaggedComparison = Annotated[
    Annotated[Comparison, Tag("_task")] | Annotated[PerplexityComparison, Tag("_perplexity")],
    Discriminator(_comparison_tag),
]


class StudyResult(BaseModel):
    """The content of results.json, and the folder of the file."""

    model_config = ConfigDict(frozen=True)

    folder: Path = Field(exclude=True)
    study: StudySettings
    environment: Environment
    timing: Timing
    model: DenseModel
    tasks: tuple[TaskSummary, ...]
    results: tuple[ResultRow, ...]
    comparisons: tuple[_TaggedComparison, ...]
    overall: tuple[OverallVerdict, ...]
    compression: tuple[CompressionSummary, ...]
    warnings: tuple[str, ...]
    noise: tuple[NoiseRow, ...] = ()
    models: tuple[ComparedModel, ...] = ()  # only in studies with external models
    judge: JudgeSummary | None = None
    families: tuple[Family, ...] = ()
    agreement: tuple[AgreementRow, ...] = ()
    failures: tuple[FailedCell, ...] = ()
    recipes: tuple[Level, ...] = ()

    @model_validator(mode="after")
    def _know_levels(self) -> Self:
        """Compute the levels of the recipes if they are missing, as in files of version 0.1.0."""
        if not self.recipes:
            object.__setattr__(self, "recipes", tuple(map(level_of_text, self.labels)))
        return self

    @property
    def labels(self) -> list[str]:
        """The labels of the compared models in the order of the tables: recipes, then external models."""
        labels = [model.label for model in self.models if model.label != "dense"]
        if not self.models:  # an unfinished run
            labels = list(label_others(self.study.others, taken=()))
        return list(dict.fromkeys([*self.study.recipes, *labels]))

    def level(self, recipe: str) -> Level:
        """Return the method, level and severity of a recipe."""
        return next((level for level in self.recipes if level.recipe == recipe), None) or level_of_text(recipe)

    def write(self) -> Path:
        """Write results.json atomically. Raises DataError if the file cannot be written."""
        content = {"schema": RESULTS_SCHEMA, **self.model_dump()}
        path = self.folder / RESULTS_FILE
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            write_text_atomically(path, text)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error}. Every record is safe in the journal: "
                "mend the cause (disk space, permissions) and run the same command again"
            ) from error
        return path


def read_results(folder: Path) -> StudyResult:
    """Read results.json from a run folder.

    Raises DataError if the file is missing, is damaged or has another schema. For a damaged file the message names the
    first entry that is missing or has the wrong type.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{folder} holds no {RESULTS_FILE}: run `kick run` to its end first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
        if schema != RESULTS_SCHEMA:
            raise DataError(f"{path} has schema {schema}; this version reads {RESULTS_SCHEMA}")
        return StudyResult(folder=folder, **content)
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged: {first_problem(error)}. Run the study's command again on this folder to write it anew"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first entry that is missing or has the wrong type, and the problem: "results.0.value: …"."""
    problem = error.errors()[0]
    entry = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("_"))
    return f"{entry}: {problem['msg']}"


def as_json(value: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain JSON types; writing the result file refuses NaN and Inf."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value)))
    return plain
