import contextlib
import json
import re
import shlex
import shutil
import sqlite3

import pytest

from llmkick.errors import DataError
from llmkick.report.page.page import write_report
from llmkick.report.run_folder import opened_run
from llmkick.study.results.results import read_results
from plain import as_json
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
    with opened_run(run) as found:
        assert len(found.items) == 12 * 4
        assert len(found.records) == 12 * 4 * 3
        assert not found.missing


def test_no_folder_and_an_empty_folder(tmp_path):
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "neither results.json nor journal.sqlite" in refused(tmp_path)


def shown(folder):
    """The page of a run that is not whole, and what it says is missing."""
    with opened_run(folder) as run:
        missing = list(run.missing)
    text = write_report(folder).read_text(encoding="utf-8")
    assert missing
    assert "This report is not whole." in text
    return "\n".join(missing), text


def edit(run, *statements):
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("kick frontier toy --method wanda --out far", ""),
        ("kick gate gate.toml -o runs/g", ""),
        ("kick gate gate.toml --out=runs/g", ""),
        ("kick gate gate.toml", " --out {run}"),  # by itself it would make a new folder
    ],
)
def test_a_search_and_a_gate_go_on_with_their_own_command(run, command, rest):
    """`kick run` would ask every level of a search, and another model than a gate."""
    (run / "results.json").unlink()
    edit(run, "DELETE FROM records WHERE recipe = 'rtn@8b'", f"INSERT INTO commands VALUES ('x', '0.1.0', '{command}')")
    missing, _ = shown(run)
    assert f"to finish it, run `{command}{rest.format(run=run)}`" in missing
    assert "kick run" not in missing


def test_an_unfinished_run_shows_what_there_is(run, template):
    whole = json.loads((template / "results.json").read_text())
    (run / "results.json").unlink()
    edit(
        run,
        "DELETE FROM records WHERE recipe = 'rtn@8b' AND task = 'perplexity'",
        "DELETE FROM records WHERE recipe = 'rtn@8b' AND task = 'context_qa:open' AND item_id > 'context_qa:open-007'",
    )
    missing, text = shown(run)
    assert "the run is not finished" in missing
    assert f"kick run {run / 'study.toml'} --out {run}" in missing
    assert "rtn@8b on context_qa:open: 8 of 12 items" in missing
    assert "not asked yet: rtn@8b on perplexity" in missing
    assert "toy-135m-instruct" in text
    with opened_run(run) as read:
        found = {(e.recipe, e.task): as_json(e) for e in read.result.comparisons}
    expected = {(e["recipe"], e["task"]): e for e in whole["comparisons"]}
    assert set(expected) - set(found) == {("rtn@8b", "perplexity"), ("rtn@8b", "context_qa:open")}
    assert all(found[cell] == expected[cell] for cell in found)


def test_a_run_that_only_began_has_a_page(run):
    (run / "results.json").unlink()
    edit(run, "DELETE FROM records", "DELETE FROM artifacts")
    missing, text = shown(run)
    assert "and 7 more" in missing
    assert "Nothing was compared with the dense model" in text


def test_a_journal_from_before_runs_were_noted(run):
    """Older journals name neither model nor tasks, and hold no prompts and commands."""
    (run / "results.json").unlink()
    edit(
        run,
        "DELETE FROM meta WHERE key IN ('model', 'tasks', 'environment')",
        "DROP TABLE prompts",
        "DROP TABLE commands",
    )
    missing, text = shown(run)
    assert "toy-135m-instruct" in text
    assert "damaged" not in missing


def test_an_unknown_study_in_the_journal_is_refused(run):
    (run / "results.json").unlink()
    edit(run, "UPDATE meta SET value = 'flavour = 3' WHERE key = 'study'")
    assert "this version cannot read the study" in refused(run)


def test_another_schema_of_the_journal_is_named(run):
    (run / "results.json").unlink()
    edit(run, "UPDATE meta SET value = '99' WHERE key = 'schema'")
    assert "the journal has schema 99" in refused(run)


def test_results_without_a_journal_are_shown_without_answers(run):
    asked = "2 recipes, 4 tasks, 48 items."
    assert asked in write_report(run).read_text(encoding="utf-8")
    (run / "journal.sqlite").unlink()
    missing, text = shown(run)
    assert "there is no journal.sqlite" in missing
    assert "✗" in text
    assert asked in text
    # Of which nothing can be counted, nothing is said.
    content = json.loads((run / "results.json").read_text())
    content["results"] = [row for row in content["results"] if row["recipe"] != "dense"]
    (run / "results.json").write_text(json.dumps(content))
    assert "2 recipes, 4 tasks." in shown(run)[1]


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}'])
def test_damaged_results_are_computed_anew_from_the_journal(run, template, content):
    (run / "results.json").write_text(content)
    whole = json.loads((template / "results.json").read_text())
    with opened_run(run) as read:
        assert "results.json is damaged" in read.missing[0]
        assert "computed anew" in read.missing[0]
        assert [as_json(entry) for entry in read.result.comparisons] == whole["comparisons"]
        assert [row.facts for row in read.result.results] == whole["results"]


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
    with pytest.raises(DataError, match=re.escape(place)):
        read_results(run)


def test_a_missing_entry_is_named(run):
    content = json.loads((run / "results.json").read_text())
    del content["comparisons"][0]["dense"]
    (run / "results.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape("comparisons.0")):
        read_results(run)


def test_a_journal_whose_every_page_is_damaged(run):
    path = run / "journal.sqlite"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 4000)
    missing, _ = shown(run)
    assert "journal.sqlite is damaged and nothing of it can be read" in missing
    (run / "results.json").unlink()
    (run / "report.html").unlink()
    assert "damaged" in refused(run)


def test_a_journal_with_one_damaged_page_loses_that_page_only(run):
    """A page of the table of records is overwritten; the others are still read."""
    page, size = table_pages(run, "records")[1]
    damaged = bytearray((run / "journal.sqlite").read_bytes())
    damaged[(page - 1) * size : page * size] = b"\xff" * size
    (run / "journal.sqlite").write_bytes(damaged)
    with opened_run(run) as read:
        kept = sum(cell.records for cell in read.cells)
    assert 12 * 4 * 3 * 0.5 < kept < 12 * 4 * 3
    missing, _ = shown(run)
    assert "journal.sqlite is damaged; what could be read is shown" in missing
    assert "records" in missing


def table_pages(run, table):
    """(page, size) of the leaves of a table, by SQLite's own list of pages."""
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno"
        try:
            return [(page, size) for (page,) in connection.execute(query, (table,))]
        except sqlite3.OperationalError as error:
            pytest.skip(f"this SQLite does not list its pages: {error}")


def test_a_journal_that_is_no_database(run):
    (run / "journal.sqlite").write_text("not a database, whatever its name says" * 50)
    assert "journal.sqlite" in shown(run)[0]


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("DROP TABLE items", "items: no such table"),
        ("UPDATE items SET choices = '{' WHERE rowid = 1", "items: 1 damaged rows"),
        ("UPDATE items SET choices = '3' WHERE rowid = 1", "items: 1 damaged rows"),
        ("UPDATE records SET details = 'x' WHERE rowid < 4", "records: 3 damaged rows"),
        ("UPDATE records SET response = X'fffe' WHERE rowid = 7", "records: 1 damaged rows"),
        ("UPDATE records SET score = 'high' WHERE rowid = 7", "records: 1 damaged rows"),
    ],
)
def test_a_journal_with_damaged_rows_shows_the_others(run, statement, lost):
    edit(run, statement)
    missing, _ = shown(run)
    assert lost in missing
    with opened_run(run) as read:
        expected = 12 * 4 * 3 - (int(lost.split()[1]) if lost.startswith("records") else 0)
        assert sum(cell.records for cell in read.cells) == expected


def test_results_of_another_study(run):
    content = json.loads((run / "results.json").read_text())
    content["study"]["hash"] = "another"
    (run / "results.json").write_text(json.dumps(content))
    assert "different studies" in refused(run)


def test_the_command_of_a_folder_with_a_space_can_be_pasted(tmp_path):
    folder = tmp_path / "my runs"
    build_run(folder, recipes=("rtn@8b",), tasks=("factoid_qa",), items=12)
    (folder / "results.json").unlink()
    edit(folder, "DELETE FROM records WHERE recipe = 'rtn@8b'")
    missing, _ = shown(folder)
    (command,) = re.findall("run `(.*?)`", missing)
    assert shlex.split(command) == ["kick", "run", str(folder / "study.toml"), "--out", str(folder)]
