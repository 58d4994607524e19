"""The records of a paper run that are kept with the results: a run in a new folder goes on from them."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmkick.models.transformers_model import TransformersModel
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.results.results import StudyResult
from llmkick.study.run import run_study
from llmkick.study.spec.study import Study, make_study
from toy import save_toy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LIMIT = 6


@pytest.fixture
def paper_records(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import paper_records

    yield paper_records
    sys.modules.pop("paper_records", None)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    tasks = [{"name": name, "limit": LIMIT} for name in ("factoid_qa", "multiple_choice:cloze")]
    return make_study({
        "name": "small", "model": str(folder), "dtype": "float32", "device": "cpu", "tasks": tasks,
        "recipes": ["wanda@0.5", "rtn@8b"], "calibration": {"source": "pocket", "sequences": 2, "length": 32},
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_study(study, out=tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another machine."""
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests of each batch that a model is asked from now on."""
    batches: list[int] = []
    for method in ("logprobs", "generate"):
        original = getattr(TransformersModel, method)

        def asking(model: TransformersModel, requests: Any, original: Any = original) -> Any:
            batches.append(len(requests))
            return original(model, requests)

        monkeypatch.setattr(TransformersModel, method, asking)
    return batches


def numbers(result: StudyResult) -> object:
    return result.results, result.comparisons, result.overall


def test_a_finished_study_asks_nothing_again(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "kept" / "small.parquet"
    assert paper_records.keep(finished.folder, file) == 3 * 2 * LIMIT
    assert paper_records.restore(file, tmp_path / "run") == 3 * 2 * LIMIT
    batches = asked(monkeypatch)
    again = run_study(study, out=tmp_path / "run")
    assert not batches
    assert numbers(again) == numbers(finished)
    assert again.compression == finished.compression
    assert again.timing.seconds["evaluate"] == pytest.approx(finished.timing.seconds["evaluate"])


def test_an_unfinished_study_asks_what_is_missing(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paper_records.keep(finished.folder, tmp_path / "whole.parquet")
    paper_records.restore(tmp_path / "whole.parquet", tmp_path / "stopped")
    with contextlib.closing(sqlite3.connect(tmp_path / "stopped" / JOURNAL_FILE)) as connection:
        connection.execute("DELETE FROM records WHERE recipe = 'rtn@8b'")
        connection.commit()
    assert paper_records.keep(tmp_path / "stopped", tmp_path / "half.parquet") == 2 * 2 * LIMIT
    paper_records.restore(tmp_path / "half.parquet", tmp_path / "run")
    batches = asked(monkeypatch)
    again = run_study(study, out=tmp_path / "run")
    assert batches
    assert numbers(again) == numbers(finished)


def test_no_text_of_a_data_set_and_no_path_is_kept(paper_records: ModuleType, finished: StudyResult, tmp_path: Path):
    file = tmp_path / "small.parquet"
    paper_records.keep(finished.folder, file)
    table = pq.read_table(file)
    assert not {"response", "question", "prompt"} & set(table.column_names)
    with contextlib.closing(sqlite3.connect(finished.folder / JOURNAL_FILE)) as connection:
        questions = [question for (question,) in connection.execute("SELECT question FROM items")]
    written = " ".join([*map(str, table.to_pylist()), *map(str, (table.schema.metadata or {}).values())])
    assert len(questions) == 2 * LIMIT
    assert not [question for question in questions if question in written]
    assert str(Path(finished.study.facts["model"]).parent) not in written  # type: ignore[arg-type]


def test_a_journal_that_is_there_stays_as_it_is(paper_records: ModuleType, finished: StudyResult, tmp_path: Path):
    paper_records.keep(finished.folder, tmp_path / "small.parquet")
    before = (finished.folder / JOURNAL_FILE).read_bytes()
    assert paper_records.restore(tmp_path / "small.parquet", finished.folder) == 0
    assert (finished.folder / JOURNAL_FILE).read_bytes() == before
    assert paper_records.restore(tmp_path / "none.parquet", tmp_path / "run") == 0
    assert paper_records.keep(tmp_path / "run", tmp_path / "none.parquet") == 0
    assert not (tmp_path / "none.parquet").exists()
