"""Journals that version 0.1.0 wrote: `journal_0_1_0.sql` is the dump of one, with a row in every table."""

from __future__ import annotations

import contextlib
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.journal.prompts import unpacked
from llmkick.study.journal.recovery import recover_journal
from llmkick.study.results.records import Artifact, OpenRecord
from llmkick.study.spec.study import make_study
from llmkick.tasks.task import Record

DUMP = Path(__file__).with_name("journal_0_1_0.sql")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as connection:
        connection.executescript(DUMP.read_text(encoding="utf-8"))
    return tmp_path


@pytest.fixture(params=[False, True], ids=["resumed", "read only"])
def journal(folder: Path, request: pytest.FixtureRequest) -> Iterator[Journal]:
    with contextlib.closing(Journal(folder, read_only=request.param)) as opened:
        yield opened


def test_records_come_back(journal: Journal):
    frame = journal.records()
    assert list(frame["recipe"]) == ["dense", "dense", "magnitude@0.5", "magnitude@0.5"]
    assert list(frame["score"].fillna(-1)) == [1.0, 0.0, 0.0, -1.0]
    assert list(frame["truncated"]) == [False, True] * 2
    assert list(frame["details"]) == [{"popularity": 0}, {"popularity": 1}] * 2
    assert journal.scores("k-half") == {"q0": 0.0, "q1": None}
    assert journal.responses("k-half") == {"q0": ("ici", None), "q1": ("ici", "too long")}
    assert [(cell.run_key, cell.records, cell.damaged) for cell in journal.cells()] == [
        ("k-dense", 2, 0),
        ("k-half", 2, 0),
    ]


def test_everything_else_comes_back(journal: Journal):
    assert list(journal.items()["question"]) == ["Où? 0", "Où? 1"]
    assert unpacked(journal.prompts("factoid_qa")) == {"q0": '{"prompt": "Où? 0"}', "q1": '{"prompt": "Où? 1"}'}
    assert journal.digest("a-half") == "d1"
    assert journal.artifact("a-half", Artifact) == Artifact(recipe="magnitude@0.5", digest="d1")
    noise = journal.noise("k-dense", OpenRecord)
    assert noise is not None
    assert noise.facts == {"accuracy": 0.5}
    calibration = journal.calibration("cal")
    assert calibration is not None
    assert calibration.tokens.tolist() == [[1, 2], [3, 4]]
    assert journal.judgements()["jk"].reply == "8 7"
    assert journal.judgements()["jk"].cut is True
    assert journal.seconds() == {"evaluate": {"factoid_qa": 1.5}}
    assert journal.commands() == [("2026-11-01T10:00:00+00:00", "0.1.0", "kick run old.toml -o old")]


def test_notes_come_back_in_both_forms(journal: Journal):
    notes = journal.notes()
    assert (notes.schema, notes.judged) == ("1", "j0")
    assert notes.model == {"name": "toy", "digest": "d0", "source_precision": "float32"}
    assert notes.tasks == [{"name": "factoid_qa", "metric": "accuracy"}]
    assert notes.environment == {"llmkick": "0.1.0"}
    assert notes.dense_digest == "d0"


def test_the_same_study_resumes(folder: Path):
    with contextlib.closing(Journal(folder)) as journal:
        study = make_study(tomllib.loads(str(journal.notes().study)))
        assert study.hash() == journal.notes().study_hash
        journal.claim(study.hash(), study.to_toml())
        assert journal.done("k-half") == {"q0", "q1"}
        again = Record(item_id="q1", cluster="c1", response="ici", score=1.0)
        journal.add_records("k-half", model="toy", recipe="magnitude@0.5", seed=0, task="factoid_qa", records=[again])
        assert journal.scores("k-half") == {"q0": 0.0, "q1": 1.0}


def test_notes_are_written_as_they_were(folder: Path):
    with contextlib.closing(Journal(folder)) as journal:
        rows = "SELECT key, value FROM meta ORDER BY key"
        before = journal.rows(rows)
        notes = journal.notes()
        journal.note("judged", str(notes.judged))
        journal.note("model", notes.model)
        journal.note("tasks", notes.tasks)
        journal.note("environment", notes.environment)
        journal.note("dense_digest", notes.dense_digest)
        assert journal.rows(rows) == before


def test_a_note_with_damaged_json_is_absent(folder: Path):
    with contextlib.closing(Journal(folder)) as journal:
        journal.connection.execute("UPDATE meta SET value = '{' WHERE key = 'model'")
        assert journal.notes().model is None
        assert journal.notes().environment == {"llmkick": "0.1.0"}


def test_it_can_be_recovered(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    target = tmp_path_factory.mktemp("recovered")
    recover_journal(folder, target)
    with contextlib.closing(Journal(target, read_only=True)) as journal:
        assert journal.scores("k-dense") == {"q0": 1.0, "q1": 0.0}
        assert journal.notes().judged == "j0"
