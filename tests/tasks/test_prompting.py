"""How a question is put: raw text or a conversation, and worked examples that give nothing away."""

from __future__ import annotations

import pytest

from llmkick.errors import ConfigError
from llmkick.models.language_model import Message
from llmkick.tasks.metrics import normalise
from llmkick.tasks.prompting import (
    PHRASE_EXAMPLES,
    PROMPTINGS,
    SENTENCE_EXAMPLES,
    conversation,
    question_prompt,
    resolve_prompting,
)
from llmkick.tasks.registry import get_task
from scripted import ScriptedModel
from toy import toy_model

EXAMPLES = (("Q1?", "A1."), ("Q2?", "A2."))


@pytest.mark.parametrize(
    ("wanted", "chat", "style"),
    [
        ("auto", True, "chat"),
        ("auto", False, "raw"),
        ("raw", True, "raw"),
        ("raw", False, "raw"),
        ("chat", True, "chat"),
    ],
)
def test_the_style_follows_the_wish_then_the_model(wanted: str, chat: bool, style: str):
    assert resolve_prompting(ScriptedModel(chat=chat), wanted) == style


def test_chat_without_a_template_is_refused():
    with pytest.raises(ConfigError, match='scripted has no chat template; use prompting = "raw"'):
        resolve_prompting(ScriptedModel(chat=False), "chat")


@pytest.mark.parametrize("wanted", ["", "Chat", "completion"])
def test_an_unknown_style_is_refused_with_the_choices(wanted: str):
    with pytest.raises(ConfigError, match=f"unknown prompting {wanted!r}; choose from: auto, chat, raw"):
        resolve_prompting(ScriptedModel(chat=True), wanted)
    assert PROMPTINGS == ("auto", "chat", "raw")


def test_raw_text():
    assert question_prompt("Q?", EXAMPLES, "raw") == (
        "Question: Q1?\nAnswer: A1.\n\nQuestion: Q2?\nAnswer: A2.\n\nQuestion: Q?\nAnswer:"
    )
    assert question_prompt("Q?", (), "raw") == "Question: Q?\nAnswer:"


def test_raw_text_has_the_passage_beside_its_question():
    assert question_prompt("Q?", EXAMPLES[:1], "raw", passage="Long ago.") == (
        "Question: Q1?\nAnswer: A1.\n\nLong ago.\n\nQuestion: Q?\nAnswer:"
    )


def test_a_conversation_alternates_and_ends_with_the_question():
    assert question_prompt("Q?", EXAMPLES, "chat") == (
        Message("user", "Q1?"),
        Message("assistant", "A1."),
        Message("user", "Q2?"),
        Message("assistant", "A2."),
        Message("user", "Q?"),
    )
    assert conversation("Q?") == (Message("user", "Q?"),)


def test_in_a_conversation_the_passage_comes_with_the_question_only():
    *examples, last = question_prompt("Q?", EXAMPLES, "chat", passage="Long ago.")
    assert last == Message("user", "Read the passage and answer the question.\n\nLong ago.\n\nQuestion: Q?")
    assert not any("Long ago" in message.content for message in examples)


def test_a_conversation_goes_through_the_models_own_template():
    model = toy_model(chat=True)
    rendered = model.render_chat(question_prompt("Q?", EXAMPLES[:1], "chat"))
    assert rendered == (
        "<|im_start|>user\nQ1?<|im_end|>\n<|im_start|>assistant\nA1.<|im_end|>\n"
        "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["factoid_qa", "multiple_choice:letter", "multiple_choice:cloze", "context_qa:open"])
def test_no_worked_example_is_asked_by_a_data_set(name: str):
    asked = {normalise(item.question) for item in get_task(name).items()}
    shown = {normalise(question) for question, _ in (*SENTENCE_EXAMPLES, *PHRASE_EXAMPLES)}
    assert shown
    assert not asked & shown


def test_both_kinds_of_example_ask_the_same():
    assert [question for question, _ in SENTENCE_EXAMPLES] == [question for question, _ in PHRASE_EXAMPLES]
    for (_, sentence), (_, phrase) in zip(SENTENCE_EXAMPLES, PHRASE_EXAMPLES, strict=True):
        assert phrase.lower() in sentence.lower()
