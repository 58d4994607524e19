"""A finished run folder, read and checked before anything is drawn from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import pandas as pd
from annotated_types import Len
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from llmkick.errors import DataError
from llmkick.study.journal import JOURNAL_FILE, Journal
from llmkick.study.results import RESULTS_FILE, StudyResult, read_results

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


_SHAPE: Mapping[str, Any] = {
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds: its results, the items that were asked, and every record."""

    result: StudyResult
    items: pd.DataFrame
    records: pd.DataFrame


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises DataError when it is not a finished, undamaged run, and says what to do."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the --out folder of a run")
    if not (folder / RESULTS_FILE).is_file():
        if (folder / JOURNAL_FILE).is_file():
            raise DataError(
                f"{folder} holds an unfinished run: finish it with "
                f"`kick run {folder / 'study.toml'} --out {folder}`, then ask for the report again"
            )
        raise DataError(f"{folder} holds neither {RESULTS_FILE} nor {JOURNAL_FILE}: it is not a run's folder")
    result = read_results(folder)
    check_result(result)
    items, records = _read_journal(result)
    return Run(result=result, items=items, records=records)


def check_result(result: StudyResult) -> None:
    """Raise DataError naming the first entry of results.json that is missing or of the wrong type."""
    for key, shape in _SHAPE.items():
        try:
            TypeAdapter(shape).validate_python(getattr(result, key), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join([key, *(str(part) for part in problem["loc"] if not str(part).startswith("_"))])
            raise DataError(
                f"{result.folder / RESULTS_FILE} is damaged: {place}: {problem['msg']}. "
                "Run the study's command again on this folder to write it anew"
            ) from error


def _read_journal(result: StudyResult) -> tuple[pd.DataFrame, pd.DataFrame]:
    path = result.folder / JOURNAL_FILE
    try:
        journal = Journal(result.folder, read_only=True)
        try:
            meta, items, records = journal.meta(), journal.items(), journal.records()
            _check_texts(items, records)
        finally:
            journal.close()
    except (sqlite3.Error, pd.errors.DatabaseError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}; restore it from a copy, or run the study again") from error
    if meta.get("study_hash") != result.study.get("hash"):
        raise DataError(
            f"{result.folder}: {RESULTS_FILE} and {JOURNAL_FILE} belong to different studies; "
            "run the study's command again on this folder"
        )
    return items, records


def _check_texts(items: pd.DataFrame, records: pd.DataFrame) -> None:
    """SQLite keeps whatever it is given in any column. Raises TypeError for what is no text."""
    for frame, columns in ((items, ("cluster", "question", "context")), (records, ("recipe", "task", "response"))):
        for column in columns:
            if not frame[column].map(lambda value: isinstance(value, str)).all():
                raise TypeError(f"{column} holds something that is no text")
    for column in ("reference", "choices"):
        if not items[column].map(lambda value: isinstance(value, list)).all():
            raise TypeError(f"{column} holds something that is no list")
