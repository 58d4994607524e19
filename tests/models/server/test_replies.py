"""The final text of a reply: what a server gives beside it, around it and instead of it is never an answer."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from llmkick.models.server.replies import final_text, model_entries, new_tokens
from loopback import chat, completion


def said(message: dict[str, Any] | None, finish: str | None = "stop", **usage: Any) -> ChatCompletion:
    reply = chat("")
    reply["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    reply["usage"] = usage or reply["usage"]
    return ChatCompletion.construct(**reply)


def part(kind: str, **rest: Any) -> dict[str, Any]:
    return {"type": kind, **rest}


PARIS = part("text", text="Paris")
# A message that says Paris, and thinks of Lyon in one of many ways.
MESSAGES: dict[str, Any] = {
    "text": {"content": "Paris"},
    "reasoning_content": {"content": "Paris", "reasoning_content": "Lyon"},
    "reasoning": {"content": "Paris", "reasoning": "Lyon"},
    "reasoning as an object": {"content": "Paris", "reasoning": {"content": [{"type": "text", "text": "Lyon"}]}},
    "reasoning_details": {"content": "Paris", "reasoning_details": [part("reasoning.text", text="Lyon")]},
    "thinking": {"content": "Paris", "thinking": "Lyon"},
    "inline": {"content": "<think>Lyon</think>\n\nParis"},
    "inline, and in a field": {"content": "<think>Lyon</think>Paris", "reasoning_content": "Lyon"},
    "inline, opened by the template": {"content": "Lyon</think>Paris"},
    "channels": {"content": "<|channel|>analysis<|message|>Lyon<|end|><|channel|>final<|message|>Paris"},
    "parts": {"content": [part("thinking", thinking=[part("text", text="Lyon")]), PARIS]},
    "parts with plain thoughts": {"content": [part("thinking", thinking="Lyon", signature="x"), PARIS]},
    "parts with reasoning": {"content": [part("reasoning", text="Lyon"), PARIS]},
    "parts with a summary": {"content": [part("reasoning", summary=[part("summary_text", text="Lyon")]), PARIS]},
    "parts with a flag": {"content": [{"text": "Lyon", "thought": True}, {"text": "Paris"}]},
    "parts with a hidden thought": {"content": [part("redacted_thinking", data="…"), PARIS]},
    "parts in pieces": {"content": [part("text", text="Pa"), part("output_text", text="ris")]},
    "parts as strings": {"content": ["Par", "is"]},
    "parts of other kinds": {"content": [part("tool_use", text="Lyon"), part("reference", ids=[1]), PARIS]},
    "a part": {"content": PARIS},
    "a text with annotations": {"content": [part("text", text={"value": "Paris", "annotations": []})]},
    "a thought inline in a part": {"content": [part("text", text="<think>Lyon</think>Paris")]},
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_the_answer_is_the_final_text(message: dict[str, Any]):
    final = final_text(said(message))
    assert final.text == "Paris"
    assert final.why_no_answer(limit=32) is None
    assert final.has_thought is (
        ("Lyon" in str(message) and "tool_use" not in str(message)) or "redacted" in str(message)
    )


@pytest.mark.parametrize("message", [m for m in MESSAGES.values() if final_text(said(m)).has_thought])
def test_a_thought_alone_is_no_answer_whatever_ended_it(message: dict[str, Any]):
    content = message["content"]
    if isinstance(content, list):
        alone: Any = [one for one in content if one.get("text") != "Paris"]
        if alone and isinstance(alone[0].get("text"), str):
            alone = [{**alone[0], "text": alone[0]["text"].removesuffix("Paris")}]
    else:
        alone = content.removesuffix("Paris")
    for finish in ("stop", "length", None):
        reason = final_text(said({**message, "content": alone}, finish)).why_no_answer(limit=32)
        assert reason is not None
        assert "thought" in reason
        assert ("limit of 32 tokens" in reason) is (finish == "length")


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": ""}, "stop", None),  # a wrong answer
        ({"content": None}, "stop", None),
        ({"content": ""}, None, None),
        ({"content": "<think>\n\n</think>"}, "stop", None),
        ({"content": []}, "stop", None),
        ({"content": "\n"}, "length", None),
        ({"content": "Par"}, "length", None),
        ({"content": "", "reasoning_content": ""}, "stop", None),
        ({"content": ""}, "length", "the limit of 32 tokens ended the answer before it had any text"),
        ({"content": None}, "length", "the limit of 32 tokens ended the answer before it had any text"),
        ({"content": ""}, "max_tokens", "the limit of 32 tokens ended the answer before it had any text"),
        ({"content": None, "reasoning": "Lyon"}, "stop", "it has a thought and no answer"),
        ({"content": "<think>Lyon"}, "stop", "it ends inside its thought"),
        ({"content": ""}, "content_filter", "the server's answer has no text (it ended with 'content_filter')"),
        ({"content": None}, "tool_calls", "the server's answer has no text (it ended with 'tool_calls')"),
        (None, "length", "the limit of 32 tokens ended the answer before it had any text"),
    ],
)
def test_empty_is_wrong_and_cut_is_no_answer(message: Any, finish: Any, reason: str | None):
    assert final_text(said(message, finish)).why_no_answer(limit=32, thinking="on") == reason


def test_a_refusal_is_what_is_said():
    assert final_text(said({"content": None, "refusal": "I will not."})).text == "I will not."


def test_raw_text_may_hold_a_thought_too():
    assert final_text(Completion.construct(**completion("<think>Lyon</think>Paris"))).text == "Paris"
    cut = Completion.construct(**completion("<think>Lyon", finish="length"))
    assert "inside its thought; with thinking" in str(final_text(cut).why_no_answer(limit=8))


def test_halves_of_a_character_in_neighbouring_parts_are_one():
    assert final_text(said({"content": [part("text", text="\ud83d"), part("text", text="\ude42")]})).text == "🙂"
    assert final_text(said({"content": "Paris \ud83d"})).text == "Paris \ufffd"


def test_tokens_of_a_thought_are_not_the_answers():
    usage = {"completion_tokens": 90, "prompt_tokens": 5}
    assert new_tokens(said({"content": "x"}, **usage)) == 90
    assert new_tokens(said({"content": "x"}, **usage, completion_tokens_details={"reasoning_tokens": 80})) == 10
    assert new_tokens(said({"content": "x"}, **usage, completion_tokens_details={"reasoning_tokens": None})) == 90
    assert new_tokens(said({"content": "x"}, completion_tokens=None)) == 0


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"object": "list", "data": [{"id": "a"}, {"id": "b", "n_ctx": 5}]}, ["a", "b"]),
        ([{"id": "a"}], ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"data": ["a"]}, ["a"]),
        ({"models": [{"name": "a"}, {"model": "b"}]}, ["a", "b"]),
        ({"data": None, "models": [{"name": "a"}]}, ["a"]),
        ({"data": [{"object": "model"}, 7, None, {"id": 7}]}, []),
        ([], []),
        ({"error": "no"}, None),
        ("models", None),
    ],
)
def test_lists_of_models(body: Any, names: list[str] | None):
    entries = model_entries(body)
    assert (None if entries is None else [entry["id"] for entry in entries]) == names
