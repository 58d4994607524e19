from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.models.language_model import GenerateRequest, Generation, Message, Unanswered
from llmkick.tasks import evaluate as asking
from llmkick.tasks.evaluate import Reference, evaluate, evaluate_in_batches
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.instruction import SYSTEM, Instruction
from published import REAL, lines, put
from scripted import ScriptedModel, says, scored
from toy import toy_model


def question(number: int, turns: int = 2, category: str = "writing", **changes: Any) -> dict[str, Any]:
    said = [f"Question {number}, turn {turn}?" for turn in range(1, turns + 1)]
    return {"question_id": number, "category": category, "turns": said, **changes}


def last_of(request: GenerateRequest) -> str:
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content


def echo(request: GenerateRequest) -> Generation:
    return says(f" I heard: {last_of(request)[:12]}")


# Turns


def test_the_second_turn_follows_the_models_own_first_answer():
    model = ScriptedModel(chat=True, generation=echo)
    task = get_task("instruction", limit=8)
    records = evaluate(model, task)
    assert len(records) == 16
    first, second = [call for call in model.calls if isinstance(call[0], GenerateRequest)]
    by_id = {item.id: item for item in task.items()}
    for record, before, after in zip(records[::2], first, second, strict=True):
        item, follower = by_id[record.item_id], by_id[record.item_id.replace(":1", ":2")]
        assert before.prompt == (Message("user", item.question),)
        assert after.prompt == (
            Message("user", item.question),
            Message("assistant", record.response),
            Message("user", follower.question),
        )
        assert (follower.follows, follower.context) == (item.id, item.question)
        assert item.cluster == follower.cluster


def test_a_base_model_is_asked_in_vicunas_format():
    model = ScriptedModel(generation=lambda request: "Fine. ")
    evaluate(model, get_task("instruction", limit=1))
    requests = [call[0] for call in model.calls if isinstance(call[0], GenerateRequest)]
    first, second = get_task("instruction", limit=1).items()
    assert requests[0].prompt == f"{SYSTEM} USER: {first.question} ASSISTANT:"
    assert requests[1].prompt == (
        f"{SYSTEM} USER: {first.question} ASSISTANT: Fine. USER: {second.question} ASSISTANT:"
    )
    assert requests[0].stops == ("\nUSER:", " USER:")


def test_a_turn_after_a_failed_one_is_unscored_and_not_asked():
    model = ScriptedModel(chat=True, generation=lambda request: Unanswered(reason="NaN"))
    first, second = evaluate(model, get_task("instruction", limit=1))
    assert (first.score, first.unscored_reason) == (None, "NaN")
    assert second.unscored_reason == f"{first.item_id}, which it follows, has no answer: NaN"
    assert len(model.calls) == 1


def test_an_empty_first_answer_is_followed_all_the_same():
    model = ScriptedModel(chat=True, generation=lambda request: "" if len(request.prompt) == 1 else "Yes, here.")
    first, second = evaluate(model, get_task("instruction", limit=1))
    assert (first.score, first.response) == (0.0, "")
    assert second.score is not None
    assert second.response == "Yes, here."


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_never_part_a_conversation(monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(asking, "BATCH_ITEMS", size)
    model = ScriptedModel(chat=True, generation=echo)
    task = get_task("instruction", limit=4)
    batches = list(evaluate_in_batches(model, task))
    assert [record.item_id for batch in batches for record in batch] == [item.id for item in task.items()]
    for batch in batches:
        assert set(Counter(record.cluster for record in batch).values()) == {2}
    # What is done is passed over batch by batch, the rest asked as before.
    done = {record.item_id for record in batches[0]}
    assert list(evaluate_in_batches(model, task, done=done)) == batches[1:]


def test_a_real_network_answers_both_turns():
    model = toy_model(chat=True, max_position_embeddings=2048)
    task = get_task("instruction", limit=2, max_new_tokens=6)
    records = evaluate(model, task)
    assert len(records) == 4
    for record in records:
        assert record.tokens <= 6
        assert 0 < record.details["unique_tokens"] <= record.tokens or not record.response
        # Greedy answers are likely to the model that gave them.
        assert record.score is not None
        assert 0 <= record.score <= 1
    assert evaluate(model, task) == records


# Scoring


def test_the_score_is_how_likely_the_dense_model_finds_the_answer():
    compressed = ScriptedModel(chat=True, generation=lambda request: "so so so so so so")
    dense = ScriptedModel(chat=True, logprob=lambda request: scored(-6.0, tokens=4))
    (records,) = evaluate_in_batches(compressed, get_task("instruction", limit=1), reference=Reference(model=dense))
    for record in records:
        assert record.score == pytest.approx(math.exp(-1.5))
        assert record.details["dense_logprob"] == -1.5
        assert record.details["repetition"] == pytest.approx(2 / 3, abs=1e-6)
        assert record.details["distinct_2"] == pytest.approx(1 / 5)
        assert record.details["words"] == 6
    assert [record.details["turn"] for record in records] == [1, 2]


def test_what_nobody_has_read_is_unscored():
    task = get_task("instruction", limit=1)
    item = task.items()[0]
    assert task.score(item, [says("Yes")]).unscored_reason == "no reference model has read the answer"
    unread = task.score(item, [says("Yes"), Unanswered(reason="NaN")])
    assert unread.unscored_reason == "the reference model cannot read the answer: NaN"
    assert task.score(item, [says(" ")]).score == 0
    ended = task.score(item, [Generation(text="x", tokens=9, finish="length", unique_tokens=4), scored(-1.0)])
    assert ended.truncated
    assert ended.details["unique_tokens"] == 4


# Data


def test_a_limit_counts_questions_of_every_category():
    items = get_task("instruction", limit=8).items()
    assert Counter(item.details["category"] for item in items if not item.follows) == dict.fromkeys(
        ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), 1
    )
    assert len(items) == 16


def test_the_papers_prompts_judge_coding_and_maths():
    task = Instruction()
    kinds = {item.details["category"]: task.judge_kind(item) for item in task.items()}
    assert (kinds["coding"], kinds["math"]) == ("coding", "maths")
    assert {kind for category, kind in kinds.items() if category not in ("coding", "math")} == {"general"}


def test_fastchats_files(tmp_path: Path):
    put(tmp_path / "mt_bench-question.jsonl", lines([question(81), question(82, category="math", reference=["4", ""])]))
    put(tmp_path / "vicuna_bench-question.jsonl", lines([question(1, turns=1)]))
    items = get_task("instruction", source=str(tmp_path)).items()
    assert [item.id for item in items] == ["81:1", "81:2", "82:1", "82:2"]
    assert [item.references for item in items] == [(), (), ("4",), ()]
    (only,) = get_task("instruction:vicuna", source=str(tmp_path)).items()
    assert (only.id, only.follows) == ("1:1", "")


@pytest.mark.skipif(not (REAL / "mt_bench").is_dir(), reason="the real MT-Bench is not at hand")
def test_the_real_questions():
    mt_bench = get_task("instruction", source=str(REAL / "mt_bench")).items()
    assert len(mt_bench) == 160
    assert len({item.cluster for item in mt_bench}) == 80
    vicuna = get_task("instruction:vicuna", source=str(REAL / "mt_bench")).items()
    assert len(vicuna) == 80
    assert len({item.details["category"] for item in vicuna}) == 9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("instruction", {"max_new_tokens": 0}, "max_new_tokens of instruction must be a whole number"),
        ("instruction:vicuna", {}, 'source of instruction:vicuna is "hub" or a folder'),
        ("instruction", {"revision": "main"}, "revision of instruction is for source hub or a folder"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        get_task(name, **options)
