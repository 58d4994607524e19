"""The record types of results.json: one type for each kind of row, in the order of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from llmkick.compression.walk.report import CompressionReport, LayerReport, RecoveryReport
from llmkick.models.language_model import ModelInfo
from llmkick.statistics import Comparison, PerplexityComparison, Verdict

AnyComparison = Comparison | PerplexityComparison
# Additional data of a journal record besides its score; the entries depend on the task.
Details = Mapping[str, Any]

# Metrics of control tasks: lower is better, and there is no verdict.
CONTROL_METRICS = ("perplexity", "bits_per_byte")


class OpenRecord(BaseModel):
    """A record of results.json: known entries are typed, and unknown entries are kept unchanged.

    `record["entry"]` returns both kinds of entries. Entries keep the order in which they were given.
    """

    # Serialization keeps NaN, so that writing the file refuses NaN. NaN must not become null.
    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    _order: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        record = handler(value)
        if isinstance(value, Mapping):
            record._order = tuple(value)
        return record

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain = handler(self)
        given = {key: plain[key] for key in self._order}
        return given | {key: value for key, value in plain.items() if key in self.model_fields_set}

    @property
    def facts(self) -> dict[str, JsonValue]:
        """All entries as plain JSON, in their original order."""
        return self.model_dump(mode="json")

    def __eq__(self, other: object) -> bool:
        """Compare records independent of the order of their entries."""
        return isinstance(other, type(self)) and self.facts == other.facts

    def __getitem__(self, entry: str) -> Any:
        if entry not in self.model_fields_set:
            raise KeyError(entry)
        return getattr(self, entry)


class StudySettings(OpenRecord):
    """The settings of the study file; other entries are in `facts`."""

    name: str = "study"
    recipes: tuple[str, ...]
    others: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    margin: float
    alpha: float
    correction: str = "none"
    hash: str | None = None


class WorkerMachine(OpenRecord):
    """The machine of one worker of a cluster."""

    processor: str
    accelerator: str | None
    device: str
    threads: int


class Environment(OpenRecord):
    """The machine and the package versions of the run. `workers` and `lost` are of a cluster."""

    packages: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    platform: str = ""
    processor: str = ""
    cores: int | None = None
    threads: int | None = None
    memory_bytes: int | None = None
    device: str = ""
    accelerator: str | None = None
    executor: str | None = None
    workers: tuple[WorkerMachine, ...] = ()
    lost: tuple[str, ...] = ()


class Timing(OpenRecord):
    """Start and end of the run, and its wall time in seconds by stage and detail, and by model digest."""

    started: str | None = None
    finished: str | None = None
    seconds: dict[str, dict[str, float]] = Field(default_factory=dict)
    compression_seconds: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None


class DenseModel(OpenRecord):
    """The dense model, the reference of all comparisons."""

    name: str
    source_precision: str
    digest: str = ""
    dtype: str = ""
    parameters: int | None = None

    @classmethod
    def of(cls, info: ModelInfo) -> Self:
        """Return the record of a model's identity."""
        return cls.model_validate(asdict(info))


class ModelZeros(OpenRecord):
    """Exact zeros in the linear layers: their number, share and pattern."""

    count: int | None = None
    share: float | None = None
    pattern: str = ""
    pruned_layers: int | None = None
    layers: int | None = None


class ComparedModel(OpenRecord):
    """Size and kind of one model in a study with external models. None means unknown."""

    label: str
    reference: str
    architecture: str
    dtype: str
    digest: str
    source_precision: str
    parameters: int | None
    stored_bytes: int | None
    zeros: ModelZeros | None


class TaskSummary(OpenRecord):
    """One task: its name, its metric, and in `facts` all inputs that determine its items and prompts."""

    name: str
    metric: str
    setting: str
    chance_level: float
    groups: Literal["strata", "clusters"] = "clusters"  # what the items' groups are: fixed strata, or drawn clusters
    judge: str | None = None  # the model that scores the answers
    task: str | None = None  # the name in the registry, if the study calls the task otherwise
    axes: dict[str, int | str] = Field(default_factory=dict)  # the level of each axis, as {"shots": 3}

    @property
    def is_control(self) -> bool:
        """Whether the task is a control without a verdict."""
        return self.metric in CONTROL_METRICS


class ResultRow(OpenRecord):
    """The score of one model × recipe × seed × task over its scored items."""

    model: str
    recipe: str
    seed: int | None
    task: str
    metric: str
    value: float | None
    n: int
    unscored: int
    unscored_reasons: dict[str, int]
    truncated: int
    tokens: int
    details: dict[str, float]
    groups: dict[str, dict[str, int | float]] | None = None  # by category or length
    axes: dict[str, int | str] = Field(default_factory=dict)  # of the model and of the task


class OverallVerdict(OpenRecord):
    """The verdict on a recipe over all tasks."""

    recipe: str
    verdict: Verdict


class CompressionSummary(OpenRecord):
    """The compression by one recipe and seed, layer by layer. Sizes are in bytes of the compact form."""

    recipe: str
    seed: int
    calibration: str | None
    calibration_source: str | None
    digest: str
    dense_bytes: int
    stored_bytes: int
    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    block_share: float | None = None  # the compressed share of the weights in blocks; None in files of 0.1.0
    model_share: float | None = None  # … and of all weights
    recovery: RecoveryReport | None = None
    axes: dict[str, int | str] = Field(default_factory=dict)

    @property
    def calibration_seed(self) -> int | None:
        """The seed of the calibration text; None for a method that uses no calibration."""
        return None if self.calibration is None else self.seed


class JournalledCompression(CompressionSummary):
    """A compression as the journal keeps it, with its wall time in seconds."""

    seconds: float

    @classmethod
    def of(cls, report: CompressionReport, label: str, axes: Mapping[str, int | str]) -> Self:
        """Return the record of a compression report under the label of its model; `axes` has the level of each axis."""
        return cls.model_validate({**report.to_json(), "recipe": label, **({"axes": dict(axes)} if axes else {})})

    @property
    def summary(self) -> CompressionSummary:
        """The compression without its wall time, which differs between equal runs."""
        return CompressionSummary.model_validate({k: v for k, v in self.facts.items() if k != "seconds"})


class Artifact(OpenRecord):
    """What all models of a journal have in common, compressed or external; `recipe` is None for an external model."""

    digest: str | None = None
    recipe: str | None = None
    source_precision: str | None = None


class NoiseRow(OpenRecord):
    """The noise floor of a task's choices; shifts are in nats."""

    task: str
    questions: int
    flipped: int
    mean_shift: float
    largest_shift: float


class FamilyRow(OpenRecord):
    """Whether a recipe matches when all recipes of its family are tested."""

    recipe: str
    p: float | None
    adjusted_p: float | None
    matching: bool


class Family(OpenRecord):
    """Recipes tested together, on one task or on all tasks."""

    scope: str
    correction: str
    alpha: float
    recipes: tuple[FamilyRow, ...]


class AgreementRow(OpenRecord):
    """Agreement of a compressed model's choices with the dense model's; KL divergence in nats."""

    task: str
    recipe: str
    seed: int | None
    n: int
    mean_kl: float
    top1_agreement: float


class FailedCell(OpenRecord):
    """A cell that was given up, with the reason; its records are only in the journal."""

    recipe: str
    seed: int | None
    task: str
    attempts: int
    reason: str
