"""The typed result of a study: the content of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Discriminator, Tag, model_validator

from llmkick.compression.levels import Level
from llmkick.statistics import CameBack, Comparison, PerplexityComparison
from llmkick.study.levels import level_of_text
from llmkick.study.results.claim_records import ClaimRow
from llmkick.study.results.judge_summary import JudgeSummary, MissingJudgements
from llmkick.study.results.overlap import OverlapRow
from llmkick.study.results.records import (
    AgreementRow,
    ComparedModel,
    CompressionSummary,
    DenseModel,
    Environment,
    FailedCell,
    Family,
    NoiseRow,
    OverallVerdict,
    ResultRow,
    StudySettings,
    TaskSummary,
    Timing,
)
from llmkick.study.results.result_file import ResultFile
from llmkick.study.results.variants import VariantRow
from llmkick.study.spec.axes import Axes
from llmkick.study.spec.model_names import label_others

RESULTS_FILE = "results.json"


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


class StudyResult(ResultFile):
    """The content of results.json, and the folder of the file."""

    file_name: ClassVar[str] = RESULTS_FILE
    schema_version: ClassVar[int] = 1
    command: ClassVar[str] = "kick run"

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
    claims: tuple[ClaimRow, ...] = ()  # empty in files of earlier versions, and for unfinished runs
    variants: tuple[VariantRow, ...] = ()  # only in studies with an axis of calibration
    returned: tuple[CameBack, ...] = ()  # only in studies with recovered models beside their bases
    overlap: tuple[OverlapRow, ...] = ()  # empty in files of earlier versions, and for unfinished runs

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
        recipes = [row.label for row in self.variants] or self.study.recipes
        return list(dict.fromkeys([*recipes, *labels]))

    @property
    def missing_judgements(self) -> tuple[MissingJudgements, ...]:
        """The missing judgements by judged task, recipe and seed; empty without a judge."""
        return () if self.judge is None else self.judge.missing

    def level(self, recipe: str) -> Level:
        """Return the method, level and severity of a recipe."""
        return next((level for level in self.recipes if level.recipe == recipe), None) or level_of_text(recipe)

    def axes_of(self, recipe: str, task: str) -> Axes:
        """Return the level of each axis of a model and a task: {"calibration.sequences": 8, "shots": 3}."""
        of_model = next((row.axes for row in self.variants if row.label == recipe), {})
        of_task = next((row.axes for row in self.tasks if row.name == task), {})
        return {**of_model, **of_task}


def read_results(folder: Path) -> StudyResult:
    """Read results.json from a run folder. Raises DataError if it is missing, damaged or of another schema."""
    return StudyResult.read(folder)
