"""The journal: whole batches, one study a folder, and clear words when the file or the disk is bad."""

from __future__ import annotations

import contextlib
import os
import runpy
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmkick.compression.walk.calibration import Calibration
from llmkick.errors import ConfigError, DataError
from llmkick.study.journal import database
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.journal.notes import Notes
from llmkick.study.journal.recovery import recover_journal
from llmkick.study.results.records import Artifact
from llmkick.tasks.task import Item, Record

ITEMS = [
    Item(
        id=f"item-{number}",
        cluster=f"cluster-{number % 2}",
        question=f"Où est «{number}»?",
        context="A passage.\nIn two lines.",
        references=("here", "ici"),
        choices=("a", "b"),
    )
    for number in range(4)
]


def record(number: int, score: float | None = 1.0, **values: object) -> Record:
    reason = None if score is not None else "too long"
    return Record(
        item_id=f"item-{number}",
        cluster=f"cluster-{number % 2}",
        response=f"réponse {number}\0\u2028'\"",
        score=score,
        unscored_reason=reason,
        **values,  # type: ignore[arg-type]
    )


def add(journal: Journal, records: list[Record], *, key: str = "key", recipe: str = "dense", seed: int | None = None):
    journal.add_records(key, model="toy", recipe=recipe, seed=seed, task="factoid_qa", records=records)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def test_what_is_committed_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tests do not wait for the disk, so that the constant is that of the file."""
    monkeypatch.setattr(database, "SYNCHRONOUS", runpy.run_path(str(database.__file__))["SYNCHRONOUS"])
    with contextlib.closing(Journal(tmp_path)) as journal:
        assert journal.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert journal.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def fill_disk(journal: Journal) -> None:
    """From here on the database file may not grow: what SQLite reports on a full disk."""
    pages = journal.connection.execute("PRAGMA page_count").fetchone()[0]
    journal.connection.execute(f"PRAGMA max_page_count = {pages}")


# Records


def test_records_come_back_as_they_went_in(journal: Journal):
    journal.add_items("factoid_qa", ITEMS)
    given = [
        record(0, 0.5, tokens=7, truncated=True, details={"f1": 0.25, "choice_logprobs": [-1.5, -2.0], "é": True}),
        record(1, None),
    ]
    add(journal, given, recipe="wanda@0.5", seed=3)
    frame = journal.records()
    assert list(frame["item_id"]) == ["item-0", "item-1"]
    first, second = (row for _, row in frame.iterrows())
    assert (first["run_key"], first["model"], first["recipe"], first["seed"]) == ("key", "toy", "wanda@0.5", 3)
    assert first["response"] == given[0].response
    assert (first["score"], first["tokens"], bool(first["truncated"]), first["position"]) == (0.5, 7, True, 0)
    assert first["details"] == given[0].details
    assert np.isnan(second["score"])
    assert (second["unscored_reason"], bool(second["truncated"]), second["details"]) == ("too long", False, {})


def test_records_are_ordered_by_recipe_seed_and_place_however_they_came(journal: Journal):
    journal.add_items("factoid_qa", ITEMS)
    add(journal, [record(3), record(1)], key="b", recipe="wanda@0.5", seed=2)
    add(journal, [record(2)], key="a", recipe="wanda@0.5", seed=1)
    add(journal, [record(0), record(2)], key="d")
    add(journal, [record(0)], key="b", recipe="wanda@0.5", seed=2)
    frame = journal.records()
    assert list(zip(frame["recipe"], frame["item_id"], strict=True)) == [
        ("dense", "item-0"),
        ("dense", "item-2"),
        ("wanda@0.5", "item-2"),
        ("wanda@0.5", "item-0"),
        ("wanda@0.5", "item-1"),
        ("wanda@0.5", "item-3"),
    ]


def test_items_come_back_in_order(journal: Journal):
    journal.add_items("factoid_qa", list(reversed(ITEMS)))
    frame = journal.items()
    assert list(frame["item_id"]) == ["item-3", "item-2", "item-1", "item-0"]
    row = frame.iloc[0]
    assert (row["question"], row["context"]) == (ITEMS[3].question, ITEMS[3].context)
    assert (row["reference"], row["choices"]) == (["here", "ici"], ["a", "b"])


def test_the_items_of_a_task_are_replaced_as_a_whole(journal: Journal):
    journal.add_items("factoid_qa", ITEMS)
    journal.add_items("other", ITEMS[:1])
    journal.add_items("factoid_qa", ITEMS[2:])
    assert list(journal.items()["item_id"]) == ["item-2", "item-3", "item-0"]


def test_empty_frames_have_their_columns(journal: Journal):
    assert {"run_key", "score", "details", "position"} <= set(journal.records().columns)
    assert {"task", "reference"} <= set(journal.items().columns)


def test_done_and_forget(journal: Journal):
    add(journal, [record(0), record(1, None)], key="a")
    add(journal, [record(2)], key="b")
    assert journal.done("a") == {"item-0", "item-1"}, "an unscored record is done too"
    assert journal.done("nothing") == set()
    assert journal.run_keys() == {"a", "b"}
    journal.forget(["a", "nothing"])
    assert (journal.done("a"), journal.done("b")) == (set(), {"item-2"})
    assert journal.run_keys() == {"b"}


def test_the_same_record_twice_is_one(journal: Journal):
    add(journal, [record(0, 0.0)])
    add(journal, [record(0, 1.0)])
    assert list(journal.records()["score"]) == [1.0]


def test_another_process_sees_a_batch_as_soon_as_it_is_added(journal: Journal, tmp_path: Path):
    other = Journal(tmp_path, read_only=True)
    assert other.done("key") == set()
    add(journal, [record(0)])
    assert other.done("key") == {"item-0"}
    other.close()


# All or nothing


def test_a_batch_that_fails_in_the_middle_leaves_nothing(journal: Journal):
    add(journal, [record(0)])
    with pytest.raises(sqlite3.ProgrammingError):
        add(journal, [record(1), record(2, tokens=object())])
    assert journal.done("key") == {"item-0"}
    add(journal, [record(1)])  # and the journal goes on
    assert journal.done("key") == {"item-0", "item-1"}


def test_an_interrupted_batch_leaves_nothing(journal: Journal):
    def interrupted() -> Iterator[tuple[str]]:
        yield ("a",)
        raise KeyboardInterrupt

    add(journal, [record(0)], key="a")
    with pytest.raises(KeyboardInterrupt), journal.transaction() as connection:
        connection.executemany("DELETE FROM records WHERE run_key = ?", interrupted())
    assert journal.done("a") == {"item-0"}
    add(journal, [record(1)], key="a")


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path):
    journal = Journal(tmp_path)
    add(journal, [record(0)])
    fill_disk(journal)
    with pytest.raises(DataError, match=r"cannot write to the journal: database or disk is full\. What was journalled"):
        add(journal, [record(number, details={"text": "x" * 10_000}) for number in range(1, 4)])
    assert journal.done("key") == {"item-0"}
    journal.close()
    again = Journal(tmp_path)
    assert again.done("key") == {"item-0"}
    add(again, [record(1)])
    again.close()


def test_a_journal_in_use_by_another_is_told(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add(journal, [record(0)])
    other = Journal(tmp_path)
    other.connection.execute("PRAGMA busy_timeout = 50")
    journal.connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match=r"cannot write to the journal: database is locked.*another run"):
        add(other, [record(1)])
    journal.connection.execute("COMMIT")
    add(other, [record(1)])
    other.close()


# Whose folder it is


def test_a_folder_with_records_belongs_to_its_study(journal: Journal):
    journal.claim("hash-1", "model = 'toy'\nseeds = [0]\n")
    add(journal, [record(0)])
    journal.claim("hash-1", "model = 'toy'\nseeds = [0]\n")
    with pytest.raises(ConfigError) as refused:
        journal.claim("hash-2", "model = 'toy'\nseeds = [0, 1]\n")
    assert str(refused.value).splitlines() == [
        "the folder holds the results of another study:",
        "  - seeds = [0]",
        "  + seeds = [0, 1]",
        "Give another --out, or remove that folder.",
    ]
    assert journal.notes().study_hash == "hash-1"


def test_a_folder_without_records_is_free(journal: Journal):
    journal.claim("hash-1", "model = 'typo'\n")
    journal.claim("hash-2", "model = 'toy'\n")
    assert journal.notes() == Notes(schema="1", study_hash="hash-2", study="model = 'toy'\n")


def test_a_journal_of_another_schema_is_refused(journal: Journal):
    journal.claim("hash-1", "")
    journal.connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    with pytest.raises(ConfigError, match="the journal has schema 2; this version reads 1"):
        journal.claim("hash-1", "")


# Bad files


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "content", [b"this is not a database, and long enough to be seen as none\n" * 40, b"SQLite format 3\0"]
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes, read_only: bool):
    (tmp_path / JOURNAL_FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"{JOURNAL_FILE} cannot be opened as a journal: "):
        Journal(tmp_path, read_only=read_only)
    assert (tmp_path / JOURNAL_FILE).read_bytes() == content, "left as it was found"


def test_an_empty_file_has_nothing_to_read(tmp_path: Path):
    (tmp_path / JOURNAL_FILE).touch()
    with pytest.raises(DataError, match="cannot be opened as a journal: no such table"):
        Journal(tmp_path, read_only=True)


def test_a_folder_without_journal_is_not_the_folder_of_a_run(tmp_path: Path):
    with pytest.raises(DataError, match=rf"holds no {JOURNAL_FILE}: it is not the folder of a run"):
        Journal(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="cannot be opened as a journal"):
        Journal(tmp_path / "missing")


def test_damaged_pages_are_told_wherever_they_are_met(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.claim("hash", "")
    add(journal, [record(number % 4, details={"text": "x" * 3000}) for number in range(4)])
    journal.close()
    path = tmp_path / JOURNAL_FILE
    whole = bytearray(path.read_bytes())
    # Everything but the first page, which holds the schema.
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))

    def read_all(*, read_only: bool) -> None:
        with contextlib.closing(Journal(tmp_path, read_only=read_only)) as damaged:
            damaged.records()

    for read_only in (True, False):
        with pytest.raises(DataError, match=r"journal\.sqlite (is damaged|cannot be opened as a journal): .*malformed"):
            read_all(read_only=read_only)


def test_a_damaged_cell_is_told(journal: Journal):
    add(journal, [record(0)])
    journal.connection.execute("UPDATE records SET details = '{'")
    with pytest.raises(DataError, match=r"journal\.sqlite is damaged: .*; restore it from a copy, or start again"):
        journal.records()


def test_read_only_changes_nothing(journal: Journal, tmp_path: Path):
    add(journal, [record(0)])
    reader = Journal(tmp_path, read_only=True)
    assert reader.done("key") == {"item-0"}
    with pytest.raises(DataError, match="readonly"):
        add(reader, [record(1)])
    with pytest.raises(DataError, match="readonly"):
        reader.forget(["key"])
    assert journal.done("key") == {"item-0"}
    reader.close()


@pytest.mark.parametrize("name", ["with space", "50%", "run#1", "what?", "a&b=c", "ünï", "file:x", "%41"])
def test_any_folder_name_will_do(tmp_path: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    writer = Journal(folder)
    add(writer, [record(0)])
    writer.close()
    assert (folder / JOURNAL_FILE).is_file()
    reader = Journal(folder, read_only=True)
    assert reader.done("key") == {"item-0"}
    reader.close()


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder of somebody else, who lets us read it. Root, who may write anywhere, is nobody meanwhile."""
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    us = os.geteuid()
    try:
        if us == 0:
            os.seteuid(65534)
        yield
    finally:
        if us == 0:
            os.seteuid(us)
        folder.chmod(0o755)


@pytest.fixture
def of_others() -> Iterator[Path]:
    """A folder that all may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users")
@pytest.mark.parametrize("ended", [True, False])
def test_a_folder_that_is_not_writable_can_be_read(of_others: Path, ended: bool):
    """Also with records in the -wal file of a run that was killed; nothing is left of their copy."""
    writer = Journal(of_others)
    add(writer, [record(0)])
    if ended:
        writer.close()
    else:
        killed = {path.name: path.read_bytes() for path in of_others.iterdir() if not path.name.endswith("-shm")}
        writer.close()
        for name, content in killed.items():
            (of_others / name).write_bytes(content)
    names = {path.name for path in of_others.iterdir()}
    assert names == {JOURNAL_FILE} if ended else f"{JOURNAL_FILE}-wal" in names
    with unwritable(of_others):
        with pytest.raises(OSError, match="denied"):
            (of_others / "new").touch()
        with contextlib.closing(Journal(of_others, read_only=True)) as reader:
            assert reader.done("key") == {"item-0"}
            (copied,) = reader.connection.execute("PRAGMA database_list").fetchall()
    assert {path.name for path in of_others.iterdir()} == names
    assert (Path(copied[2]).parent == of_others.resolve()) == ended
    assert ended or not Path(copied[2]).exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users")
def test_a_journal_of_others_is_recovered(of_others: Path):
    writer = Journal(of_others)
    add(writer, [record(number) for number in range(4)])
    writer.close()
    with unwritable(of_others), tempfile.TemporaryDirectory() as target:
        recover_journal(of_others, Path(target))
        with contextlib.closing(Journal(Path(target), read_only=True)) as recovered:
            assert recovered.done("key") == {f"item-{number}" for number in range(4)}


# What a compression leaves


def test_calibration_windows_come_back_exactly(journal: Journal):
    tokens = np.array([[0, 1, 2], [151_935, 2**31 - 1, 7]], dtype=np.int64)
    given = Calibration(tokens=tokens, source="self", seed=4)
    assert journal.calibration("key") is None
    journal.add_calibration("key", given)
    found = journal.calibration("key")
    assert found is not None
    assert found.tokens.dtype == np.int64
    assert np.array_equal(found.tokens, tokens)
    assert (found.source, found.seed, found.digest) == ("self", 4, given.digest)
    assert journal.calibration("other") is None


def test_artifacts_are_replaced(journal: Journal):
    assert journal.artifact("key", Artifact) is None
    assert journal.digest("key") is None
    first = Artifact.model_validate({"layers": [{"name": "q", "error": 0.1}], "b": None})
    journal.add_artifact("key", "digest-1", first)
    assert journal.artifact("key", Artifact) == first
    assert journal.digest("key") == "digest-1"
    journal.add_artifact("key", "digest-2", Artifact())
    assert journal.artifacts(Artifact) == [Artifact()]
    assert journal.digest("key") == "digest-2"


def test_seconds_add_up_over_sessions(tmp_path: Path):
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.add_seconds("evaluate", "factoid_qa", 1.5)
        journal.add_seconds("evaluate", "perplexity", 0.25)
        journal.add_seconds("load", "toy", 1.0)
        total = journal.seconds()
        journal.close()
    assert total == {"evaluate": {"factoid_qa": 3.0, "perplexity": 0.5}, "load": {"toy": 2.0}}


def test_a_folder_has_one_run_at_a_time(tmp_path: Path):
    """Two runs would drop each other's records; whoever only reads is no run."""
    journal = Journal(tmp_path, alone=True)
    with pytest.raises(ConfigError, match=r"another process runs a study in .*: wait until it has ended, or give"):
        Journal(tmp_path, alone=True)
    Journal(tmp_path, read_only=True).close()
    journal.close()
    Journal(tmp_path, alone=True).close()
