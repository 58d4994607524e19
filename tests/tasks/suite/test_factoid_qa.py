"""Factoid questions: what is asked, and which answers count."""

from __future__ import annotations

import pytest

from llmkick.models.language_model import GenerateRequest, Generation, Message, Unanswered
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.prompting import SENTENCE_EXAMPLES
from llmkick.tasks.question_answering import MAX_NEW_TOKENS, score_answer
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.factoid_qa import FactoidQA
from llmkick.tasks.task import Item, Record
from scripted import ScriptedModel, says

PARIS = Item(
    id="x", cluster="capitals", question="What is the capital of France?", references=("Paris", "City of Light")
)


def score(answer: str, item: Item = PARIS) -> Record:
    return score_answer(item, says(answer))


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "paris.",
        "The capital of France is Paris.",
        "\n\nParis\n",
        "the city of light",
        "Paris\nNo, it is Lyon.",
    ],
)
def test_right_answers(answer: str):
    assert score(answer).score == 1


@pytest.mark.parametrize(
    "answer",
    [
        "London",
        "Parisian",  # an alias inside a word
        "comparison",
        "I do not know.\nParis",  # an alias in the second line
        "",  # the original code scores an empty answer as right
        "   \n",
        ".",
        "France",  # a word of the question
    ],
)
def test_wrong_answers(answer: str):
    assert score(answer).score == 0


def test_an_answer_is_kept_with_the_numbers_beside_it():
    record = score_answer(PARIS, Generation(text=" It is Paris \nor not", tokens=9, finish="length"))
    assert record == Record(
        item_id="x",
        cluster="capitals",
        response="It is Paris",
        score=1.0,
        tokens=9,
        truncated=True,
        details={"exact_match": 0.0, "f1": 0.5},
    )
    assert score_answer(PARIS, says("the Paris!")).details == {"exact_match": 1.0, "f1": 1.0}
    assert not score_answer(PARIS, Generation(text="Paris", tokens=1, finish="end")).truncated


def test_a_failed_request_is_unscored_not_wrong():
    record = score_answer(PARIS, Unanswered(reason="too long"))
    assert (record.score, record.unscored_reason) == (None, "too long")


def test_what_is_asked():
    task = FactoidQA()
    item = task.items()[0]
    (raw,) = task.requests(item, "raw")
    shown = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SENTENCE_EXAMPLES)
    assert raw == GenerateRequest(
        f"{shown}Question: {item.question}\nAnswer:", stops=("\n",), max_new_tokens=MAX_NEW_TOKENS
    )
    (chat,) = task.requests(item, "chat")
    assert isinstance(chat.prompt, tuple)
    assert chat.prompt[-1] == Message("user", item.question)
    assert (chat.stops, chat.max_new_tokens) == (raw.stops, raw.max_new_tokens)


@pytest.mark.parametrize("chat", [False, True])
def test_the_gold_answer_is_never_in_the_prompt(chat: bool):
    model = ScriptedModel(chat=chat)
    task = get_task("factoid_qa")
    evaluate(model, task)
    requests = [request for call in model.calls for request in call]
    for item, request in zip(task.items(), requests, strict=True):
        own = request.prompt[-1].content if chat else request.prompt.rpartition("Question: ")[2]
        assert item.question in own
        assert not any(f" {alias.lower()} " in own.lower() for alias in item.references)


def test_a_model_that_always_or_never_knows():
    task = get_task("factoid_qa", limit=40)
    known = {item.question: item.references[-1] for item in task.items()}

    def knows(request: GenerateRequest) -> str:
        return "It is " + known[str(request.prompt).rpartition("Question: ")[2].removesuffix("\nAnswer:")]

    assert [record.score for record in evaluate(ScriptedModel(generation=knows), task)] == [1.0] * 40
    assert [record.score for record in evaluate(ScriptedModel(generation=lambda _: ""), task)] == [0.0] * 40
    # Repeating the question is no answer.
    echo = ScriptedModel(generation=lambda request: str(request.prompt).rpartition("Question: ")[2])
    assert [record.score for record in evaluate(echo, task)] == [0.0] * 40


def test_items_hold_the_whole_row():
    item = next(item for item in FactoidQA().items() if item.id == "factoid-geography-001")
    assert item.cluster == "geography"
    assert item.question == "What is the largest ocean on Earth?"
    assert "Pacific" in item.references
