"""The verdict card: read back with the hub's own library, it says what the study says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llmkick.errors import ConfigError, DataError
from llmkick.report.card import card, write_card
from llmkick.report.lookup import task_comparisons
from llmkick.study.results.results import StudyResult
from report.synthetic import task_comparison


@pytest.mark.parametrize("by", ["first", "last"])
def test_the_hub_reads_the_verdicts_as_they_are(result: StudyResult, by: str, tmp_path: Path):
    label = result.labels[0 if by == "first" else -1]
    path = write_card(result, tmp_path / "card.md", label)
    loaded = ModelCard.load(path)
    assert loaded.data.model_name == label
    comparisons = {entry.task: entry for entry in task_comparisons(result) if entry.recipe == label}
    entries = {entry.task_name: entry for entry in loaded.data.eval_results}
    assert set(entries) == {task for task, entry in comparisons.items() if entry.compressed is not None}
    facts = {task.name: task.facts for task in result.tasks}
    assert entries
    for task, entry in entries.items():
        comparison, said = comparisons[task], entry.metric_args
        assert entry.metric_value == comparison.compressed
        assert (said["verdict"], said["n"], said["margin"]) == (comparison.verdict, comparison.n, comparison.margin)
        assert said.get("relative_loss") == comparison.relative_drop
        bounds = (said.get("relative_loss_low"), said.get("relative_loss_high"))
        assert bounds == (comparison.interval or (None, None))
        assert (said["alpha"], said["reference"]) == (comparison.alpha, result.model.name)
        assert entry.dataset_revision == facts[task].get("data")
    # Written once more by the library, nothing is lost.
    assert ModelCard(str(loaded)).data.to_dict() == loaded.data.to_dict()


def test_the_section_has_a_row_for_each_task(result: StudyResult):
    label = result.labels[0]
    rows = [line for line in card(result, label).splitlines() if line.startswith("| ") and "---" not in line]
    comparisons = [entry for entry in task_comparisons(result) if entry.recipe == label]
    assert len(rows) == 1 + len(comparisons)
    for row, comparison in zip(rows[1:], comparisons, strict=True):
        assert comparison.verdict in row
        assert f"| {comparison.n:,} |" in row
        assert row.count("|") == rows[0].count("|")


def test_names_cannot_break_the_card(result: StudyResult):
    name = "a|b\n---\n<img src=x> [l](http://e.com) : #"
    renamed = result.model_copy(update={"model": result.model.model_copy(update={"name": name})})
    text = card(renamed, result.labels[0])
    loaded: Any = ModelCard(text)
    assert {entry.metric_args["reference"] for entry in loaded.data.eval_results} == {name}
    assert "<img" not in loaded.text
    assert "](" not in loaded.text


def test_what_a_card_cannot_be_of_is_refused(result: StudyResult, tmp_path: Path):
    with pytest.raises(ConfigError, match="choose it with --recipe: "):
        card(result)
    with pytest.raises(ConfigError, match=r"'wanda@0\.99' is not in .* choose from: "):
        card(result, "wanda@0.99")
    without = result.model_copy(update={"comparisons": ()})
    with pytest.raises(DataError, match="no verdict on any task"):
        card(without, result.labels[0])
    readme = tmp_path / "README.md"
    readme.write_text("# My model\n")
    with pytest.raises(ConfigError, match="exists and is not a verdict card"):
        write_card(result, readme, result.labels[0])
    assert readme.read_text() == "# My model\n"


def test_a_card_is_replaced_by_one_of_another_run(result: StudyResult, tmp_path: Path):
    first, last = result.labels[0], result.labels[-1]
    path = write_card(result, tmp_path / "card.md", first)
    for label in (last, first):
        assert write_card(result, path, label).read_text(encoding="utf-8") == card(result, label)
    for whole in (card(result, first).split("---\n\n")[1], card(result, first).replace("\n", "\r\n")):
        path.write_bytes(whole.encode())
        assert write_card(result, path, last).read_text(encoding="utf-8") == card(result, last)
    # A card without scores and an overall verdict is one, too.
    unscored = tuple(replace(entry, compressed=None) for entry in task_comparisons(result) if entry.recipe == first)
    silent = result.model_copy(update={"comparisons": unscored, "overall": ()})
    write_card(silent, path, first)
    assert "model-index" not in path.read_text(encoding="utf-8")
    assert write_card(result, path, last).read_text(encoding="utf-8") == card(result, last)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("---\n", "---\nlicense: mit\n", 1),
        lambda text: text.replace("## What", "# My model\n\nIt is kind.\n\n## What"),
        lambda text: text + "\n## License\n\nMIT\n",
        lambda text: text + "MIT\n",
        lambda text: text.replace("\n\n|", "\n\nA sentence of mine.\n\n|"),
        lambda text: text.replace("\n\nMade with", "\n\nOf mine.\n\nMade with"),
        lambda text: text + text[text.index("## What") :],
        lambda text: text.replace("---\n", "---\n: [\n", 1),
        lambda text: text.replace("type: llmkick/", "type: glue/", 1),
        lambda text: text.replace("model-index:", "model-index: no\nothers:"),
        lambda text: text[: text.index("Made with")],
        lambda text: "",
    ],
    ids=[
        "license",
        "before",
        "after",
        "last line",
        "sentence",
        "between",
        "twice",
        "broken front matter",
        "another evaluation",
        "broken index",
        "cut",
        "empty",
    ],
)
def test_a_file_that_holds_anything_but_a_card_is_kept(result: StudyResult, tmp_path: Path, edit: Callable[[str], str]):
    readme = tmp_path / "README.md"
    held = edit(card(result, result.labels[0]))
    assert held != card(result, result.labels[0])
    readme.write_text(held, encoding="utf-8")
    with pytest.raises(ConfigError, match="exists and is not a verdict card"):
        write_card(result, readme, result.labels[0])
    assert readme.read_text(encoding="utf-8") == held


def test_a_gain_has_the_same_sign_in_value_and_bounds(result: StudyResult):
    label = result.labels[0]
    gain = task_comparison(recipe=label, relative_drop=-0.018, interval=(-0.076, 0.037), verdict="matching", n=500)
    text = card(result.model_copy(update={"comparisons": (gain,)}), label)
    assert "| loss (+ is a gain) | bounds |" in text
    assert "| +1.8 % | [+7.6, 3.7] % | 500 |" in text
