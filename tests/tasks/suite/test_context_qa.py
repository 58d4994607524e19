"""Questions about a passage: the same questions, once without and once with the passage."""

from __future__ import annotations

import pytest

from llmkick.models.language_model import GenerateRequest, Unanswered
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.metrics import contains_alias
from llmkick.tasks.registry import get_task
from scripted import ScriptedModel

CLOSED, OPEN = "context_qa:closed", "context_qa:open"


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_only_the_open_variant_shows_the_passage(style: str):
    closed, opened = get_task(CLOSED), get_task(OPEN)
    for item in opened.items():
        (without,), (shown,) = closed.requests(item, style), opened.requests(item, style)  # type: ignore[arg-type]
        assert item.context not in str(without.prompt)
        text = shown.prompt if style == "raw" else shown.prompt[-1].content
        assert text.count(item.context) == 1
        assert text.index(item.context) < text.index(item.question)
        assert without.stops == shown.stops == ("\n",)


def test_settings_and_clusters():
    closed, opened = get_task(CLOSED), get_task(OPEN)
    assert (closed.setting, opened.setting) == ("knowledge", "synthesis")
    assert closed.key != opened.key
    assert {item.cluster for item in opened.items()} == {item.id.rpartition("-q")[0] for item in opened.items()}


def test_a_model_that_can_only_read_scores_in_the_open_variant_alone():
    texts = {item.question: item for item in get_task(OPEN).items()}

    def reads(request: GenerateRequest) -> str:
        passage, _, question = str(request.prompt).rpartition("Question: ")
        item = texts[question.removesuffix("\nAnswer:")]
        found = [alias for alias in item.references if contains_alias(passage, [alias])]
        return found[0] if found else "I do not know."

    model = ScriptedModel(generation=reads)
    opened = [record.score for record in evaluate(model, get_task(OPEN))]
    closed = [record.score for record in evaluate(model, get_task(CLOSED))]
    assert opened == [1.0] * len(opened)
    assert sum(closed) == 0


def test_a_passage_too_long_for_the_model_is_unscored():
    task = get_task(OPEN, limit=12)

    def answer(request: GenerateRequest) -> str | Unanswered:
        return Unanswered(reason="900 tokens exceed the context of 512")

    records = evaluate(ScriptedModel(generation=answer), task)
    assert {(record.score, record.unscored_reason) for record in records} == {
        (None, "900 tokens exceed the context of 512")
    }
    assert [record.cluster for record in records] == [item.cluster for item in task.items()]
