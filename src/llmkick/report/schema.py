"""The shape that results.json must have for a page to be drawn from it; further entries are welcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from typing_extensions import TypedDict

Bounds = Annotated[list[float], Len(2, 2)] | None


class _Task(TypedDict):
    name: str
    metric: str
    setting: str
    chance_level: float


class _Score(TypedDict):
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


class _Comparison(TypedDict):
    task: str
    recipe: str
    seeds: list[int | str]
    n: int
    interval: Bounds
    margin: float
    alpha: float
    notes: list[str]


class _TaskComparison(_Comparison):
    unscored: int
    clusters: int
    dense: float | None
    compressed: float | None
    relative_drop: float | None
    gained: float
    lost: float
    mcnemar_p: float | None
    verdict: str
    paper_verdict: str | None
    p_matching: float | None
    p_not_matching: float | None
    drop_above_chance: float | None
    interval_above_chance: Bounds
    smallest_detectable_loss: float | None
    chance: float


class _Perplexity(_Comparison):
    dense: float
    compressed: float
    relative_increase: float
    outcome: str
    p_within: float | None
    p_beyond: float | None


class _Overall(TypedDict):
    recipe: str
    verdict: str


class _Layer(TypedDict):
    name: str
    shape: Annotated[list[int], Len(2, 2)]
    realised_sparsity: float
    relative_output_error: float | None
    damping: float | None
    tokens: int


class _Compression(TypedDict):
    recipe: str
    seed: int
    calibration: str | None
    calibration_source: str | None
    digest: str
    dense_bytes: int
    stored_bytes: int
    layers: list[_Layer]
    warnings: list[str]


class _Study(TypedDict):
    recipes: list[str]
    margin: float
    alpha: float


class _Timing(TypedDict):
    seconds: NotRequired[dict[str, dict[str, float]]]
    compression_seconds: NotRequired[dict[str, float]]
    peak_memory_bytes: NotRequired[int]


class _Model(TypedDict):
    name: str
    source_precision: str


class _Described(TypedDict):
    label: str
    reference: str
    architecture: str
    dtype: str
    digest: str
    source_precision: str
    parameters: int | None
    stored_bytes: int | None
    zeros: dict[str, Any] | None


SHAPE: Mapping[str, Any] = {
    "study": _Study,
    "environment": dict[str, Any],
    "timing": _Timing,
    "model": _Model,
    "tasks": list[_Task],
    "results": list[_Score],
    "comparisons": list[_TaskComparison | _Perplexity],
    "overall": list[_Overall],
    "compression": list[_Compression],
    "warnings": list[str],
    "models": list[_Described],
}
