"""The records of a paper run that are kept with the results: a run in a new folder goes on from them."""

from __future__ import annotations

import contextlib
import json
import lzma
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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
    folder = tmp_path_factory.mktemp("inputs") / "toy"
    save_toy(folder, max_position_embeddings=512)
    text = folder.parent / "texts" / "running.txt"
    text.parent.mkdir()
    text.write_text("The model reads this sentence, and then the next one. " * 200)
    tasks = [{"name": name, "limit": LIMIT} for name in ("factoid_qa", "multiple_choice:cloze")]
    return make_study({
        "name": "small", "model": str(folder), "dtype": "float32", "device": "cpu", "tasks": tasks,
        "recipes": ["wanda@0.5", "rtn@8b"], "calibration": {"source": str(text), "sequences": 2, "length": 32},
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


def forget_rounding(folder: Path) -> None:
    """As a run that was stopped before its last recipe."""
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        connection.execute("DELETE FROM records WHERE recipe = 'rtn@8b'")
        connection.commit()


def numbers(result: StudyResult) -> object:
    return result.results, result.comparisons, result.overall


def test_a_finished_study_asks_nothing_again(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "kept" / "small.json.xz"
    assert paper_records.keep(finished.folder, file) == 3 * 2 * LIMIT
    assert paper_records.restore(file, tmp_path / "run", study) == 3 * 2 * LIMIT
    batches = asked(monkeypatch)
    again = run_study(study, out=tmp_path / "run")
    assert not batches
    assert numbers(again) == numbers(finished)
    assert [each.digest for each in again.compression] == [each.digest for each in finished.compression]
    assert [each.layers for each in again.compression] == [each.layers for each in finished.compression]
    assert again.timing.seconds["evaluate"] == pytest.approx(finished.timing.seconds["evaluate"])


def test_an_unfinished_study_asks_what_is_missing(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paper_records.keep(finished.folder, tmp_path / "whole.json.xz")
    paper_records.restore(tmp_path / "whole.json.xz", tmp_path / "stopped", study)
    forget_rounding(tmp_path / "stopped")
    assert paper_records.keep(tmp_path / "stopped", tmp_path / "half.json.xz") == 2 * 2 * LIMIT
    paper_records.restore(tmp_path / "half.json.xz", tmp_path / "run", study)
    batches = asked(monkeypatch)
    again = run_study(study, out=tmp_path / "run")
    assert batches
    assert numbers(again) == numbers(finished)


def test_no_text_of_a_data_set_and_no_path_is_kept(paper_records: ModuleType, finished: StudyResult, tmp_path: Path):
    file = tmp_path / "small.json.xz"
    paper_records.keep(finished.folder, file)
    written = lzma.decompress(file.read_bytes()).decode()
    with contextlib.closing(sqlite3.connect(finished.folder / JOURNAL_FILE)) as connection:
        questions = [question for (question,) in connection.execute("SELECT question FROM items")]
        answers = [answer for (answer,) in connection.execute("SELECT response FROM records")]
    assert len(questions) == 2 * LIMIT
    assert not [text for text in questions + answers if len(text) > len("A. 1") and text in written]
    assert "running.txt" in written
    for path in (finished.study.facts["model"], finished.folder):
        assert str(Path(str(path)).parent) not in written


def test_a_journal_that_is_there_gets_what_it_lacks(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path
):
    file, folder = tmp_path / "small.json.xz", tmp_path / "run"
    paper_records.keep(finished.folder, file)
    paper_records.restore(file, folder, study)
    forget_rounding(folder)
    assert paper_records.restore(file, folder, study) == 2 * LIMIT
    assert paper_records.restore(file, folder, study) == 0
    again = tmp_path / "again.json.xz"
    assert paper_records.keep(folder, again) == 3 * 2 * LIMIT
    first, second = (json.loads(lzma.decompress(each.read_bytes())) for each in (file, again))
    assert sorted(map(str, first["records"])) == sorted(map(str, second["records"]))
    assert first["seconds"] == second["seconds"]


def test_choices_keep_their_letters(paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path):
    """So that agreement of choices is that of the whole run."""
    assert finished.agreement
    assert {row.top1_agreement for row in finished.agreement} != {1.0}
    paper_records.keep(finished.folder, tmp_path / "small.json.xz")
    paper_records.restore(tmp_path / "small.json.xz", tmp_path / "run", study)
    forget_rounding(tmp_path / "run")
    assert run_study(study, out=tmp_path / "run").agreement == finished.agreement


def test_records_of_other_weights_stay_away(
    paper_records: ModuleType, study: Study, finished: StudyResult, tmp_path: Path
):
    """Another machine can make other weights of a recipe: its new records must not be completed by old ones."""
    file, folder = tmp_path / "small.json.xz", tmp_path / "run"
    paper_records.keep(finished.folder, file)
    paper_records.restore(file, folder, study)
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        connection.execute("DELETE FROM records WHERE recipe = 'wanda@0.5' AND item_id NOT IN "
                           "(SELECT item_id FROM records WHERE recipe = 'wanda@0.5' LIMIT 2)")  # fmt: skip
        connection.execute("UPDATE artifacts SET digest = 'other' WHERE json_extract(report, '$.recipe') = 'wanda@0.5'")
        connection.commit()
        (left,) = connection.execute("SELECT count(*) FROM records WHERE recipe = 'wanda@0.5'").fetchone()
    assert paper_records.restore(file, folder, study) == 0
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM records WHERE recipe = 'wanda@0.5'").fetchone() == (left,)
    (folder / JOURNAL_FILE).unlink()
    assert paper_records.restore(file, folder, study) == 3 * 2 * LIMIT


def test_the_letter_of_older_files_is_that_of_the_likeliest_option(paper_records: ModuleType):
    details = json.dumps({"choice_logprobs": [-3.0, -1.0, -2.0]})
    row = ["key", "m", "dense", None, "multiple_choice:letter [shots=0]", "i", "c", 1.0, None, 3, 0, details]
    assert paper_records._with_its_letter(row)[-1] == "B."
    assert paper_records._with_its_letter([*row, "C. the text of an option"])[-1] == "C."
    assert paper_records._with_its_letter([*row[:4], "multiple_choice:cloze", *row[5:]])[-1] == ""
    tied = json.dumps({"choice_logprobs": [-1.0, -1.0]})
    assert paper_records._with_its_letter([*row[:-1], tied])[-1] == ""
    assert paper_records._with_its_letter([*row[:-1], "{}", "an answer"])[-1] == ""


def test_dense_answers_that_others_are_read_beside_are_asked_again(
    paper_records: ModuleType, study: Study, tmp_path: Path
):
    """A summary is compared with the dense model's, whose text is not kept."""
    tasks = [{"name": "summarization", "limit": 2, "max_new_tokens": 8}]
    summaries = make_study({**study.model_dump(), "recipes": ["rtn@8b"], "tasks": tasks})
    whole = run_study(summaries, out=tmp_path / "whole")
    file, folder = tmp_path / "whole.json.xz", tmp_path / "run"
    assert paper_records.keep(whole.folder, file) == 2 * 2
    assert paper_records.restore(file, tmp_path / "again", summaries) == 2 * 2
    tables = json.loads(lzma.decompress(file.read_bytes()))
    tables["records"] = [row for row in tables["records"] if row[2] == "dense"]
    file.write_bytes(lzma.compress(json.dumps(tables).encode()))
    assert paper_records.restore(file, folder, summaries) == 0
    assert numbers(run_study(summaries, out=folder)) == numbers(whole)


def test_a_damaged_file_is_named(paper_records: ModuleType, study: Study, tmp_path: Path):
    file = tmp_path / "small.json.xz"
    file.write_bytes(b"not compressed")
    with pytest.raises(SystemExit, match=r"small\.json\.xz cannot be read"):
        paper_records.restore(file, tmp_path / "run", study)
    assert not (tmp_path / "run").exists()


def test_nothing_kept_and_nothing_begun_is_nothing(paper_records: ModuleType, study: Study, tmp_path: Path):
    assert paper_records.restore(tmp_path / "none.json.xz", tmp_path / "run", study) == 0
    assert paper_records.keep(tmp_path / "run", tmp_path / "none.json.xz") == 0
    assert not (tmp_path / "none.json.xz").exists()
