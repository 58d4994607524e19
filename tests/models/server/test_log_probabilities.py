"""Log-probabilities in every shape: the right number, or that there is none."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from llmkick.models.language_model import ContinuationScore, Unanswered
from llmkick.models.server.log_probabilities import (
    NO_LOG_PROBABILITIES,
    echoed_score,
    first_token_scores,
    likeliest_first,
    number_of,
)
from loopback import chat, completion

NONE: dict[str, float] = {}
AB = {"A": -2.5, "B": -0.1}
ENTRY = {"token": "B", "logprob": -0.1, "bytes": [66]}
TOP = [ENTRY, {"token": "A", "logprob": -2.5, "bytes": [65]}]
# What a server gives as `logprobs`, and the likeliest first tokens in it.
SHAPES: dict[str, tuple[Any, dict[str, float]]] = {
    "conversation": ({"content": [{**ENTRY, "top_logprobs": TOP}]}, AB),
    "conversation without bytes": (
        {"content": [{"token": "B", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": -0.1}]}]}, {"B": -0.1},
    ),
    "conversation with bytes alone": (
        {"content": [{**ENTRY, "top_logprobs": [{"bytes": [66], "logprob": -0.1, "token": None}]}]}, {"B": -0.1},
    ),
    "conversation with a dictionary": ({"content": [{**ENTRY, "top_logprobs": AB}]}, AB),
    "a bare list": ([{**ENTRY, "top_logprobs": TOP}], AB),
    "raw text": ({"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [AB]}, AB),
    "raw text without tokens": ({"top_logprobs": [AB]}, AB),
    "raw text with a list of objects": ({"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [TOP]}, AB),
    "raw text with pairs": (
        {"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [[["B", -0.1], ["A", -2.5]]]}, AB,
    ),
    "raw text with pairs the other way": (
        {"tokens": ["B"], "token_logprobs": [-0.1], "top_logprobs": [[[-0.1, 7, "B"], [-2.5, 8, "A"]]]}, AB,
    ),
    "raw text with objects": ({"tokens": ["B"], "top_logprobs": [{"B": {"logprob": -0.1, "rank": 1}}]}, {"B": -0.1}),
    "raw text in the shape of a conversation": ({"content": [{**ENTRY, "id": 5, "top_logprobs": TOP}]}, AB),
    "a position before the first": (
        {"tokens": ["", "B"], "token_logprobs": [None, -0.1], "top_logprobs": [None, AB]}, AB,
    ),
    "no number": ({"content": [{**ENTRY, "top_logprobs": [{"token": "B", "logprob": None}]}]}, NONE),
    "numbers that are none": (
        {"top_logprobs": [{"B": -0.1, "A": -math.inf, "C": math.nan, "D": -9999.0, "E": None, "F": "x"}]}, {"B": -0.1},
    ),
    "null": (None, NONE),
    "an empty object": ({}, NONE),
    "null content": ({"content": None}, NONE),
    "empty content": ({"content": []}, NONE),
    "content of nothing": ({"content": [None]}, NONE),
    "null alternatives": ({"content": [{**ENTRY, "top_logprobs": None}]}, NONE),
    "a null position": ({"tokens": ["B"], "token_logprobs": [None], "top_logprobs": [None]}, NONE),
    "null everywhere": ({"tokens": None, "token_logprobs": None, "top_logprobs": None}, NONE),
    "a number": (0, NONE),
    "a text": ("none", NONE),
}  # fmt: skip


@pytest.mark.parametrize(("logprobs", "likeliest"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("raw", [False, True])
def test_the_likeliest_first_tokens(logprobs: Any, likeliest: dict[str, float], raw: bool):
    body = (completion if raw else chat)("B", logprobs=logprobs)
    reply: Any = (Completion if raw else ChatCompletion).construct(**body)
    assert likeliest_first(reply) == likeliest


def test_without_log_probabilities_letters_have_no_score():
    assert first_token_scores({}, ["A", "B"]) == [NO_LOG_PROBABILITIES] * 2
    assert NO_LOG_PROBABILITIES.reason == "the server gives no log-probabilities"


@pytest.mark.parametrize(
    ("value", "number"),
    [(-0.5, -0.5), (0, 0.0), (None, None), (math.nan, None), (-math.inf, None), (-9999.0, None), (-1e9, None),
     ("-1", None), (True, None)],
)  # fmt: skip
def test_what_is_a_log_probability(value: Any, number: float | None):
    assert number_of(value) == number


def echo(logprobs: Any, continuation: str = " Paris", generated: int = 1) -> ContinuationScore | Unanswered:
    choice: Any = Completion.construct(**completion("", logprobs=logprobs)).choices[0]
    return echoed_score(choice, "Q: A:", continuation, generated=generated)


TOKENS, VALUES = ["Q:", " A:", " Paris", " new"], [None, -1.0, -0.25, -0.5]
LIKELIEST = [None, {" A:": -1.0}, {" Paris": -0.25, " Lyon": -3.0}, {" new": -0.5}]
RIGHT = ContinuationScore(logprob=-0.25, tokens=1, is_greedy=True)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": TOKENS, "token_logprobs": VALUES, "top_logprobs": LIKELIEST},
        {"tokens": TOKENS, "token_logprobs": [-9999.0, *VALUES[1:]], "top_logprobs": [{}, *LIKELIEST[1:]]},
        {
            "tokens": TOKENS,
            "token_logprobs": VALUES,
            "top_logprobs": [
                None if top is None else [{"token": token, "logprob": value} for token, value in top.items()]
                for top in LIKELIEST
            ],
        },
        {
            "content": [
                {"token": token, "logprob": value, "top_logprobs": [{"token": token, "logprob": value}]}
                for token, value in zip(TOKENS, VALUES, strict=True)
            ]
        },
    ],
)  # fmt: skip
def test_an_echo_in_every_shape(logprobs: Any):
    assert echo(logprobs) == RIGHT


def test_tokens_that_are_parts_of_a_character_add_up_by_their_bytes():
    def token(text: str, raw: bytes, value: float | None) -> dict[str, Any]:
        return {"token": text, "bytes": list(raw), "logprob": value, "top_logprobs": []}

    emoji = "🙂".encode()
    content = [
        token("Q: A:", b"Q: A:", None),
        token("\ufffd", b" " + emoji[:2], -1.0),
        token("\ufffd", emoji[2:], -0.5),
    ]
    score = echo({"content": content}, " 🙂", generated=0)
    assert score == ContinuationScore(logprob=-1.5, tokens=2, is_greedy=False)
    escaped = [r"bytes:\x20\xf0\x9f", r"bytes:\x99\x82"]
    score = echo({"tokens": ["Q: A:", *escaped], "token_logprobs": [None, -1.0, -0.5]}, " 🙂", generated=0)
    assert score == ContinuationScore(logprob=-1.5, tokens=2, is_greedy=False)


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        (None, "the server gives no log-probabilities"),
        ({"tokens": TOKENS, "token_logprobs": [None] * 4, "top_logprobs": None}, "gives no log-probabilities"),
        ({"tokens": TOKENS, "token_logprobs": None, "top_logprobs": None}, "gives no log-probabilities"),
        ({"tokens": TOKENS, "token_logprobs": [None, -1.0]}, "gives no log-probabilities"),
        ({"tokens": TOKENS, "token_logprobs": [None, -1.0, None, -0.5]}, "no finite log-probability for a part"),
        ({"tokens": TOKENS, "token_logprobs": [None, -1.0, math.nan, -0.5]}, "no finite log-probability for a part"),
        ({"tokens": TOKENS, "token_logprobs": [None, -1.0, -9999.0, -0.5]}, "no finite log-probability for a part"),
        ({"tokens": ["Q", "Paris", "!", "?"], "token_logprobs": VALUES}, "do not add up to the text"),
        ({"tokens": [1, 2, 3, 4], "token_logprobs": VALUES}, "do not add up to the text"),
    ],
)
def test_an_echo_without_numbers_is_said(logprobs: Any, reason: str):
    score = echo(logprobs)
    assert isinstance(score, Unanswered)
    assert reason in score.reason
