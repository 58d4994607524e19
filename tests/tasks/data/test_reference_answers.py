from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import DataError
from llmkick.tasks.data.reference_answers import read_reference_answers
from llmkick.tasks.task import Item
from published import REAL, lines, put

ITEMS = [Item(id=name, cluster=name[:2], question="") for name in ("81:1", "81:2", "82:1")]


def fastchat(number: int, *turns: str) -> dict[str, Any]:
    return {"question_id": number, "model_id": "gpt-3.5", "choices": [{"index": 0, "turns": list(turns)}]}


def test_both_layouts(tmp_path: Path):
    path = put(tmp_path / "a.jsonl", lines([fastchat(81, "one", "two"), fastchat(82, "three"), fastchat(83, "extra")]))
    expected = {"81:1": "one", "81:2": "two", "82:1": "three"}
    assert read_reference_answers(path, ITEMS) == expected
    plain = [{"id": name, "answer": text} for name, text in expected.items()]
    assert read_reference_answers(put(tmp_path / "b.jsonl.gz", lines(plain)), ITEMS) == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([fastchat(81, "one")], r"has no answer to 2 of 3 items \(81:2, 82:1\); it answers 81:1"),
        ([{"id": "story", "answer": "x"}], r"has no answer to 3 of 3 items .* it answers story"),
        ([], r"has no answer to 3 of 3 items .* it answers nothing"),
        ([{"id": "81:1"}], "column 'answer': is missing"),
        ([{"id": "81:1", "answer": " "}], "column 'answer': is empty"),
        ([{"question_id": 81, "choices": []}], "column 'choices': is empty"),
        ([{"id": "81:1", "answer": "x"}, {"id": "81:1", "answer": "y"}], "'81:1' is the id of"),
    ],
)
def test_answers_that_do_not_match(tmp_path: Path, rows: list[Any], message: str):
    with pytest.raises(DataError, match=message):
        read_reference_answers(put(tmp_path / "answers.jsonl", lines(rows)), ITEMS)


def test_no_file(tmp_path: Path):
    with pytest.raises(DataError, match="is not there"):
        read_reference_answers(tmp_path / "none.jsonl", ITEMS)


@pytest.mark.skipif(not (REAL / "mt_bench").is_dir(), reason="the real MT-Bench is not at hand")
def test_gpt4s_answers_are_read():
    items = [Item(id=f"{number}:{turn}", cluster="", question="") for number in range(101, 131) for turn in (1, 2)]
    answers = read_reference_answers(REAL / "mt_bench" / "mt_bench-reference_answer-gpt-4.jsonl", items)
    assert answers["101:1"].startswith("If you have just overtaken the second person")
