"""Answers recalled by content: what makes a question another one, and what is never kept."""

from __future__ import annotations

import errno
import fcntl
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import DataError
from llmkick.gate.answer_file import AnswerFile
from llmkick.gate.recorded_model import MissingAnswerError, RecordedModel
from llmkick.models.language_model import GenerateRequest, Message, ScoreRequest, Unanswered
from scripted import ScriptedModel, says, scored


def recorded(model: ScriptedModel | None, path: Path, **options: Any) -> RecordedModel:
    """The recorded model with what the file holds; the file is read anew."""
    file = AnswerFile.read(path, strict=False)
    return RecordedModel(file=file, identity={"weights": "w"}, open_model=model and (lambda: model), **options)


REQUESTS = [GenerateRequest("one"), GenerateRequest((Message("user", "two"),)), GenerateRequest("one", stops=("\n",))]
SCORES = [ScoreRequest("a", " b"), ScoreRequest("a", " c")]


def test_every_kind_of_answer_comes_back_as_it_was(tmp_path: Path):
    model = ScriptedModel(
        generation=lambda request: replace(says(f"to {request.prompt}\u2028", finish="end"), has_thought=True),
        logprob=lambda request: -math.inf if request.continuation == " c" else scored(-0.1 - 0.2, boundary_moved=True),
        chat=True,
    )
    first = recorded(model, tmp_path / "answers.jsonl")
    calls = [
        lambda asked: asked.generate(REQUESTS),
        lambda asked: asked.logprobs(SCORES),
        lambda asked: asked.tokenize("text"),
        lambda asked: asked.prompt_tokens(REQUESTS[1].prompt),
        lambda asked: asked.refusal(REQUESTS),
        lambda asked: (asked.info, asked.max_tokens, asked.has_chat_template, asked.answers_all_requests, asked.notes),
    ]
    expected = [call(first) for call in calls]
    assert expected[0] == model.generate(REQUESTS)
    assert (expected[1], expected[2]) == (model.logprobs(SCORES), model.tokenize("text"))
    nobody = recorded(None, tmp_path / "answers.jsonl")
    assert [call(nobody) for call in calls] == expected
    assert nobody.generate(REQUESTS)[0].has_thought  # equality leaves it out
    assert (first.asked, nobody.asked) == (5, 0)


def test_answers_go_on_where_the_cache_was_cleared_meanwhile(tmp_path: Path):
    model = ScriptedModel(generation=lambda request: "yes")
    first = recorded(model, tmp_path / "answers" / "a.jsonl")
    first.generate(REQUESTS[:1])
    shutil.rmtree(tmp_path / "answers")
    first.generate(REQUESTS[1:])
    again = recorded(None, tmp_path / "answers" / "a.jsonl")
    assert again.generate(REQUESTS[1:]) == model.generate(REQUESTS[1:])
    assert again.file.damaged == 0


def test_answers_are_kept_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    model = ScriptedModel(generation=lambda request: "yes")
    recorded(model, tmp_path / "a.jsonl").generate(REQUESTS)
    assert recorded(None, tmp_path / "a.jsonl").generate(REQUESTS) == model.generate(REQUESTS)


@pytest.mark.parametrize("in_cache", [True, False])
def test_answers_that_cannot_be_written_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_cache: bool):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / ("" if in_cache else "cache")))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "answers").mkdir()
    monkeypatch.setattr("llmkick.gate.answer_file.locked", full)
    with pytest.raises(DataError, match=r"cannot write the stored answers .*Read-only file system") as error:
        recorded(ScriptedModel(generation=lambda _: "yes"), tmp_path / "answers" / "a.jsonl").generate(REQUESTS)
    assert str(error.value).endswith("; set LLMKICK_CACHE to another folder") == in_cache


@pytest.mark.parametrize(
    "other",
    [
        GenerateRequest("one "),
        GenerateRequest("one", max_new_tokens=33),
        GenerateRequest("one", stops=("x",)),
        GenerateRequest((Message("user", "one"),)),
    ],
)
def test_another_question_is_asked(tmp_path: Path, other: GenerateRequest):
    model = ScriptedModel(generation=lambda request: "yes")
    recorded(model, tmp_path / "answers.jsonl").generate(REQUESTS)
    with pytest.raises(MissingAnswerError, match=r"holds no answer to '.*one"):
        recorded(None, tmp_path / "answers.jsonl").generate([other])
    model.calls.clear()
    recorded(model, tmp_path / "answers.jsonl").generate([*REQUESTS, other])
    assert model.calls == [[other]]


def test_in_half_precision_the_batch_belongs_to_the_question(tmp_path: Path):
    model = ScriptedModel(generation=lambda request: "yes")
    model.info = replace(model.info, dtype="bfloat16")
    recorded(model, tmp_path / "answers.jsonl").generate(REQUESTS)
    assert recorded(None, tmp_path / "answers.jsonl").generate(REQUESTS) == [says("yes")] * 3
    with pytest.raises(MissingAnswerError):
        recorded(None, tmp_path / "answers.jsonl").generate(REQUESTS[:2])


@pytest.mark.parametrize("keeps", [True, False])
def test_a_missing_answer_is_kept_only_if_it_will_be_missing_again(tmp_path: Path, keeps: bool):
    model = ScriptedModel(generation=lambda request: Unanswered(reason="busy") if request.prompt == "one" else "yes")
    first = recorded(model, tmp_path / "answers.jsonl", keeps_unanswered=keeps)
    answers = first.generate(REQUESTS[:2])
    assert answers == [Unanswered(reason="busy"), says("yes")]
    model.calls.clear()
    assert recorded(model, tmp_path / "answers.jsonl", keeps_unanswered=keeps).generate(REQUESTS[:2]) == answers
    assert model.calls == ([] if keeps else [[REQUESTS[0]]])


def test_half_a_line_of_a_killed_run_costs_one_answer(tmp_path: Path):
    path, model = tmp_path / "answers.jsonl", ScriptedModel(generation=lambda request: "yes")
    recorded(model, path).generate(REQUESTS)
    path.write_bytes(path.read_bytes()[:-10])
    model.calls.clear()
    again = recorded(model, path)
    assert again.generate(REQUESTS) == [says("yes")] * 3
    assert model.calls == [[REQUESTS[2]]]
    assert recorded(None, path).generate(REQUESTS) == [says("yes")] * 3


def test_two_processes_may_fill_one_file(tmp_path: Path):
    path, model = tmp_path / "answers.jsonl", ScriptedModel(generation=lambda request: "yes")
    first, second = recorded(model, path), recorded(model, path)
    first.generate(REQUESTS[:1])
    second.generate(REQUESTS[1:])
    assert recorded(None, path).generate(REQUESTS) == [says("yes")] * 3
