"""A prompt longer than the model: fewer worked examples, then shorter evidence, never a shorter question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import published as files
from llmkick.models.language_model import ScoreRequest, Unanswered
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.fitting import cut_text, fits, shorter_text
from llmkick.tasks.registry import get_task
from scripted import ScriptedModel
from toy import toy_model

TOY = toy_model(chat=True)
WORDS = st.lists(st.sampled_from(["the", "and", "a", "twelve", "ça", "🚁", "12:"]), max_size=40).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(WORDS, st.integers(-1, 60))
def test_a_cut_is_the_longest_beginning_that_fits(text: str, tokens: int):
    count = len(TOY.tokenize(""))
    cut = cut_text(TOY, text, tokens)
    assert text.startswith(cut)
    assert len(TOY.tokenize(cut)) - count <= max(tokens, 0)
    if cut != text and tokens > 8:
        assert text[len(cut)].isspace()  # between words
        following = len(cut) + 1 + len(text[len(cut) + 1 :].split(" ")[0])
        assert len(TOY.tokenize(text[:following])) - count > tokens


def test_a_text_without_spaces_is_cut_all_the_same():
    assert cut_text(ScriptedModel(), "x" * 50, 10) == "x" * 10
    assert cut_text(ScriptedModel(), "", 10) == ""


def test_long_evidence_is_never_tokenised_whole():
    class Counting(ScriptedModel):
        longest = 0

        def tokenize(self, text: str) -> list[int]:
            self.longest = max(self.longest, len(text))
            return super().tokenize(text)

    model = Counting()
    assert cut_text(model, "word " * 100_000, 100) == ("word " * 20).rstrip()
    assert model.longest <= 1000


def test_the_tokens_of_a_conversation_are_those_of_its_template():
    task = get_task("factoid_qa")
    prompt = task.requests(task.items()[0], "chat")[0].prompt
    assert TOY.prompt_tokens(prompt) == len(TOY.encode(prompt))
    assert not fits(TOY, [prompt], TOY.max_tokens)


def test_shortening_ends_even_where_nothing_fits():
    assert shorter_text(ScriptedModel(max_tokens=10), "some text", lambda text: ["x" * 50 + text], 4) == ""


@pytest.mark.parametrize("holds", [2000, 900, 700, 500, 350])
def test_fewer_worked_examples_make_a_choice_fit(holds: int):
    task = get_task("multiple_choice", limit=40)
    model = ScriptedModel(max_tokens=holds)
    items = task.items(model)
    shown = [item.details.get("shots", 5) for item in items]
    for item, shots in zip(items, shown, strict=True):
        prompt = str(task.requests(item, "raw")[0].prompt)
        assert prompt.count("\nAnswer:") == shots + 1
        assert item.question in prompt.rpartition("\n\n")[2]
        assert prompt.endswith(f"\nD. {item.choices[3]}\nAnswer:")
        assert len(prompt) + 8 <= holds or shots == 0
    assert (set(shown) == {5}) is (holds >= 900)
    records = evaluate(model, task)
    assert [record.details.get("shots", 5) for record in records] == shown


@pytest.mark.parametrize("holds", [2000, 700, 600, 500])
def test_fewer_worked_examples_make_every_option_of_cloze_fit(holds: int):
    """As many examples as leave room for the longest option, so that no item is unscored for its options."""
    task = get_task("multiple_choice:cloze", shots=5, limit=40)

    def scored_if_it_fits(request: ScoreRequest) -> float | Unanswered:
        fits = len(str(request.prompt)) + len(str(request.continuation)) <= holds
        return -1.0 if fits else Unanswered(reason="too long")

    model = ScriptedModel(max_tokens=holds, logprob=scored_if_it_fits)
    items = task.items(model)
    for item in items:
        shots, longest = item.details.get("shots", 5), max(len(f" {option}") for option in item.choices)
        lengths = [
            len(str(task.requests(replace(item, details={"shots": count}), "raw")[0].prompt)) for count in range(6)
        ]
        assert lengths[shots] + longest <= holds
        assert shots == 5 or lengths[shots + 1] + max(longest, 8) > holds
    assert max(len(option) for item in items for option in item.choices) > 8
    assert [record.unscored_reason for record in evaluate(model, task)] == [None] * 40


def test_the_version_of_cloze_with_worked_examples_is_its_own():
    versions = {shots: get_task("multiple_choice:cloze", shots=shots).key["version"] for shots in (0, 1, 5)}
    assert versions == {0: 1, 1: 2, 5: 2}
    assert get_task("multiple_choice:letter").key["version"] == 1


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize(("holds", "budget"), [(4000, 100), (400, 1000), (260, 1000), (150, 50)])
def test_evidence_is_cut_by_tokens_and_the_question_never(tmp_path: Path, protocol: str, holds: int, budget: int):
    rows = [files.triviaqa_row(n, ["Paris is old. " + "More words follow. " * 40]) for n in range(4)]
    files.put(tmp_path / "rc-validation.jsonl", files.lines(rows))
    task = get_task("context_qa:open", source=str(tmp_path), protocol=protocol, evidence_tokens=budget)
    model = ScriptedModel(max_tokens=holds)
    for item, record in zip(task.items(model), evaluate(model, task), strict=True):
        prompt = str(task.requests(item, "raw")[0].prompt)
        assert item.question in prompt
        assert item.context in prompt
        assert len(prompt) + 32 <= holds
        assert 0 < len(item.context) <= budget
        assert record.details["evidence_tokens"] == len(item.context)
        assert record.details["evidence_cut"] is True
        assert record.details["answer_in_evidence"] is True
        if protocol == "strict":  # worked examples go first
            assert ("shots" in record.details) is (holds < 300 or holds == 400)


def test_without_room_for_any_evidence_the_model_says_so():
    model = ScriptedModel(max_tokens=60)
    task = get_task("context_qa:open", limit=5)
    assert all(len(item.context) > 100 for item in task.items(model))


def test_pocket_prompts_that_fit_are_left_alone():
    model = ScriptedModel(chat=True)
    for name in ("context_qa:open", "context_qa:closed", "multiple_choice:letter", "factoid_qa"):
        task = get_task(name, limit=30)
        assert task.items(model) == task.items()
