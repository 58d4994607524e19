import json
import shutil
from dataclasses import replace

import pytest

from llmkick.errors import ConfigError, DataError
from llmkick.report.run_folder import opened_run
from llmkick.report.several import page
from llmkick.report.several.page import write_studies
from llmkick.report.several.studies import labels, pair
from report.specs import layers, points
from report.synthetic import build_run


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("studies") / "first", recipes=["wanda@0.25", "rtn@8b"], items=24).folder


@pytest.fixture
def second(first, tmp_path):
    """The same study again; tests change it."""
    return shutil.copytree(first, tmp_path / "second")


def change(folder, edit):
    path = folder / "results.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def paired(first, second):
    with opened_run(first) as one, opened_run(second) as other:
        return pair(one, other, names=("first", "second"))


def test_the_same_study_twice_is_identical_everywhere(first, second):
    found = paired(first, second)
    assert len(found.differences) == 3 * 4
    assert all(one.identical and one.difference in (0, None) for one in found.differences)
    assert not found.refusals
    assert not found.notes


def test_a_difference_is_paired_by_item(first, tmp_path):
    other = build_run(tmp_path / "other", recipes=["wanda@0.25", "rtn@3b-g64"], items=24).folder
    change(other, lambda content: content["comparisons"].clear())
    found = paired(first, other)
    assert {(one.recipe, one.task) for one in found.differences} == {
        (recipe, task)
        for recipe in ("dense", "wanda@0.25")
        for task in ("factoid_qa", "multiple_choice:letter", "context_qa:open", "perplexity")
    }
    assert {one.what for one in found.refusals} == {"rtn@8b", "rtn@3b-g64"}


def test_scores_differ_by_what_was_gained_and_lost(first, second):
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(second / "journal.sqlite")) as connection:
        connection.execute(
            "UPDATE records SET score = 0 "
            "WHERE recipe = 'rtn@8b' AND task = 'factoid_qa' AND item_id < 'factoid_qa-006'"
        )
        connection.commit()
    found = {(one.recipe, one.task): one for one in paired(first, second).differences}
    changed = found["rtn@8b", "factoid_qa"]
    assert changed.lost > 0
    assert changed.gained == 0
    assert changed.difference == pytest.approx(-changed.lost / 24)
    assert changed.interval[0] < changed.difference < changed.interval[1]
    assert sum(not one.identical for one in found.values()) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data", "b" * 64, "questions"), ("prompting", "raw", "prompts"), ("protocol", "paper", "protocols"),
        ("version", 2, "versions of the task"), ("limit", 5, "samples"),
        ("judge", "openai:https://host/v1#other", "judges"),
        ("judge_reading", 2, "versions of the reader of its replies"),
    ],
)  # fmt: skip
def test_a_task_that_was_not_asked_alike_is_refused_with_the_reason(first, second, key, value, words):
    change(second, lambda content: content["tasks"][0].update({key: value}))
    found = paired(first, second)
    (refusal,) = found.refusals
    assert refusal.what == "factoid_qa"
    assert words in refusal.reason
    assert not [one for one in found.differences if one.task == "factoid_qa"]


def test_perplexities_of_two_models_are_not_paired(first, second):
    change(second, lambda content: content["model"].update(name="other", digest="e" * 64))
    found = paired(first, second)
    assert [one.what for one in found.refusals] == ["perplexity"]
    assert any("other models: toy-135m-instruct, other" in note for note in found.notes)


def test_another_margin_is_said(first, second):
    change(second, lambda content: content["study"].update(margin=0.1))
    assert any("another margin: 0.05, 0.1" in note for note in paired(first, second).notes)


def test_other_items_are_refused(first, tmp_path):
    fewer = build_run(tmp_path / "fewer", recipes=["wanda@0.25", "rtn@8b"], items=20).folder
    found = paired(first, fewer)
    assert not found.differences
    assert {one.reason for one in found.refusals} == {"4 items were asked in one study only"}


def test_the_page_of_several_says_what_is_not_paired(first, second, tmp_path):
    change(second, lambda content: content["tasks"][0].update(data="b" * 64))
    page = write_studies([first, second], tmp_path / "pages" / "studies.html")
    text = page.read_text(encoding="utf-8")
    assert "different questions (aaaaaaaaaaaa…, bbbbbbbbbbbb…)" in text
    assert "Left out, because it was not asked alike: factoid_qa." in text
    assert text.count('scope="row" class="study"') == 2 * 3


def test_folders_have_short_names_that_tell_them_apart(tmp_path):
    for name in ("a/run", "b/run", "c/other"):
        (tmp_path / name).mkdir(parents=True)
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "other"]
    assert labels(folders) == [str(folders[0]), str(folders[1]), "other"]
    with pytest.raises(ConfigError, match="given twice"):
        labels([folders[0], folders[0]])


def test_a_folder_without_a_run_is_named(first, tmp_path):
    with pytest.raises(DataError, match="neither results"):
        write_studies([first, tmp_path], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("loss", "interval", "domain", "cut"),
    [(0.5, (0.2, 0.8), (-0.05, 1.05), False), (1.4, (1.1, 1.9), (-0.05, 1.45), True)],
    ids=["above chance", "below chance"],
)
def test_the_figure_contains_every_loss(first, second, loss, interval, domain, cut):
    values = {"relative_drop": loss, "interval": list(interval), "verdict": "undecided"}
    change(
        second, lambda content: [entry.update(values) for entry in content["comparisons"] if entry["kind"] == "task"]
    )
    calm = {"relative_drop": 0.0, "interval": [0.0, 0.0], "verdict": "undecided"}
    with opened_run(second) as one, opened_run(first) as other:
        entries = tuple(replace(entry, **calm) if entry.kind == "task" else entry for entry in other.result.comparisons)
        other = replace(other, result=other.result.model_copy(update={"comparisons": entries}))
        (figure,) = page._figures(["one", "other"], [one, other])
    assert all(row["loss"] in (0.0, loss) for row in points(figure.spec))
    scales = [layer["encoding"]["x"]["scale"]["domain"] for layer, _ in layers(figure.spec)]
    assert scales
    assert all(scale == pytest.approx(domain) for scale in scales)
    assert ("Intervals are cut at the end of the axis." in figure.caption) == cut
