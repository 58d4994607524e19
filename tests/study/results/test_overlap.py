"""Overlap between the text of a recovery and the items: planted, and none."""

from __future__ import annotations

import random

import pytest

from llmkick.study.results.overlap import MadeWith, OverlapRow, TextIndex, overlap_warnings, overlaps, words_of_text
from llmkick.tasks.task import Item

QUESTION = "In which year did the clockmaker Anselm Brodeur finish the great tower clock of Vellmar?"
ITEMS = (
    Item(id="long", cluster="a", question=QUESTION, references=("1791", "the year 1791")),
    Item(id="short", cluster="a", question="Who wrote Hamlet?", references=("William Shakespeare",)),
    Item(id="passage", cluster="b", question="Why?", context="The river rises in the hills above the town of Ost."),
    Item(id="tokens", cluster="b", question="", tokens=(104, 105)),
)
FILLER = "Bread is made from flour, water, salt and yeast; the baker kneads it and lets it rest before it is baked."


def rows_of(*windows: str) -> OverlapRow:
    text = MadeWith(recipes=("wanda@0.5+lora",), source="notes.txt", seed=0, digest="d", tokens=99, texts=windows)
    (row,) = overlaps([text], {"task": ITEMS}, lambda tokens: "".join(map(chr, tokens)))
    return row


def counts(row: OverlapRow) -> tuple[int, int, int, int]:
    return row.exact, row.ngram, row.answered, row.passages


def test_a_text_of_other_things_overlaps_with_nothing():
    row = rows_of(FILLER, "The year 1791 was cold. William Shakespeare was born in Stratford. Hamlet is a play.")
    assert counts(row) == (0, 0, 0, 0)
    assert (row.items, row.with_answer, row.windows, row.examples) == (4, 2, 2, ())
    assert overlap_warnings([row]) == []


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ((f"{FILLER} {QUESTION} It was 1791. {FILLER}",), (1, 1, 1, 0)),
        ((f"{FILLER} {QUESTION.upper()}?! — 1791",), (1, 1, 1, 0)),  # case and punctuation do not matter
        ((f"{FILLER} {QUESTION} {FILLER}",), (1, 1, 0, 0)),  # no answer
        ((f"{FILLER} {QUESTION}", "It was 1791."), (1, 1, 0, 0)),  # the answer in another window
        ((f"{FILLER} {QUESTION} 17910 and 21791",), (1, 1, 0, 0)),  # the answer only inside other numbers
        (("the clockmaker Anselm Brodeur finish the great tower in 1791",), (0, 1, 1, 0)),  # eight words
        (("clockmaker Anselm Brodeur finish the great tower in 1791",), (0, 0, 0, 0)),  # seven
        (("Who wrote Hamlet? William Shakespeare did.",), (1, 1, 1, 0)),  # a question of fewer words: all of it
        (("Who wrote a Hamlet? William Shakespeare did.",), (0, 0, 0, 0)),
        (("They say the river rises in the hills above the town.",), (0, 0, 0, 1)),
        (("hi",), (0, 0, 0, 1)),  # the tokens of running text
    ],
)
def test_planted_text_is_counted(windows: tuple[str, ...], expected: tuple[int, int, int, int]):
    assert counts(rows_of(*windows)) == expected


def test_signs_of_languages_without_spaces_are_words():
    item = Item(id="cjk", cluster="a", question="日本で一番高い山は何ですか", references=("富士山",))
    text = MadeWith(
        recipes=("m",), source="s", seed=0, digest="d", tokens=9, texts=("はい。日本で一番高い山は富士山です。",)
    )
    (row,) = overlaps([text], {"task": [item]}, lambda tokens: "")
    assert counts(row) == (0, 1, 1, 0)
    assert words_of_text("Éa, 12 富士!") == ["éa", "12", "富", "士"]


def test_windows_that_share_words_are_those_that_a_plain_search_finds():
    rng = random.Random(4)
    windows = [" ".join(rng.choice("ab") for _ in range(60)) for _ in range(20)]
    index = TextIndex.of(windows)
    for length in (1, 3, 7, 8, 9, 12):
        words = [rng.choice("ab") for _ in range(length)]
        runs = [" ".join(words[start : start + 8]) for start in range(max(1, length - 7))]
        expected = {i for i, window in enumerate(windows) if any(f" {run} " in f" {window} " for run in runs)}
        assert index.sharing(words) == expected


def test_a_task_is_warned_of_once_with_the_worst_seed():
    seeds = [rows_of(f"{QUESTION} 1791").facts, rows_of(f"{QUESTION} 1791 Who wrote Hamlet? William Shakespeare").facts]
    rows = [OverlapRow.model_validate({**facts, "seed": seed}) for seed, facts in enumerate(seeds)]
    (line,) = overlap_warnings(rows)
    assert line.startswith("contamination: 2 of 4 questions of task stand beside their answer in the text (notes.txt)")
    assert "wanda@0.5+lora" in line
    (line,) = overlap_warnings([rows_of(QUESTION)])
    assert line.startswith("1 of 4 questions of task stand in the text")
    assert line.endswith("without their answers")
