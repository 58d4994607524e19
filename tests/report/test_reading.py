import json
import shutil
import sqlite3

import pytest

from llmkick.errors import DataError
from llmkick.report.page import write_report
from llmkick.report.reading import read_run
from report.synthetic import build_run


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build_run(folder, recipes=["wanda@0.1", "rtn@8b"], items=12)
    return folder


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def refused(folder):
    with pytest.raises(DataError) as caught:
        write_report(folder)
    assert not (folder / "report.html").exists()
    return str(caught.value)


def test_a_whole_run_is_read(run):
    found = read_run(run)
    assert len(found.items) == 12 * 4
    assert len(found.records) == 12 * 4 * 3


def test_no_folder_and_an_empty_folder(tmp_path):
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "neither results.json nor journal.sqlite" in refused(tmp_path)


def test_an_unfinished_run_says_how_to_finish_it(run):
    (run / "results.json").unlink()
    message = refused(run)
    assert "unfinished" in message
    assert f"kick run {run / 'study.toml'} --out {run}" in message


def test_results_without_a_journal(run):
    (run / "journal.sqlite").unlink()
    assert "journal.sqlite" in refused(run)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', '{"schema": 1}', "\x00"])
def test_damaged_results(run, content):
    (run / "results.json").write_text(content)
    assert "damaged" in refused(run)


def test_another_schema_is_named(run):
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**content, "schema": 99}))
    assert "99" in refused(run)


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (["results", 0, "value"], "high", "results.0.value"),
        (["results", 1, "details"], None, "results.1.details"),
        (["comparisons", 0, "interval"], [0.1], "comparisons.0"),
        (["comparisons", 0, "n"], None, "comparisons.0"),
        (["compression", 0, "layers", 2, "shape"], "64x64", "compression.0.layers.2.shape"),
        (["compression", 0, "layers", 2, "shape"], [64], "compression.0.layers.2.shape"),
        (["model", "source_precision"], None, "model.source_precision"),
        (["study", "recipes"], "wanda@0.1", "study.recipes"),
        (["overall"], {}, "overall"),
        (["timing", "seconds"], {"load": 3}, "timing.seconds"),
    ],
)
def test_an_entry_of_the_wrong_type_is_named(run, path, value, place):
    content = json.loads((run / "results.json").read_text())
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    (run / "results.json").write_text(json.dumps(content))
    assert place in refused(run)


def test_a_missing_entry_is_named(run):
    content = json.loads((run / "results.json").read_text())
    del content["comparisons"][0]["dense"]
    (run / "results.json").write_text(json.dumps(content))
    assert "comparisons.0" in refused(run)


def test_a_damaged_journal(run):
    path = run / "journal.sqlite"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 4000)
    message = refused(run)
    assert "journal.sqlite" in message
    assert "malformed" in message


def test_a_journal_that_is_no_database(run):
    (run / "journal.sqlite").write_text("not a database, whatever its name says" * 50)
    assert "journal.sqlite" in refused(run)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE items",
        "UPDATE items SET choices = '{'",
        "UPDATE items SET choices = '3'",
        "UPDATE records SET details = 'x'",
        "UPDATE records SET response = X'fffe'",
    ],
)
def test_a_journal_with_damaged_rows(run, statement):
    with sqlite3.connect(run / "journal.sqlite") as connection:
        connection.execute(statement)
    assert "journal.sqlite is damaged" in refused(run)


def test_results_of_another_study(run):
    content = json.loads((run / "results.json").read_text())
    content["study"]["hash"] = "another"
    (run / "results.json").write_text(json.dumps(content))
    assert "different studies" in refused(run)
