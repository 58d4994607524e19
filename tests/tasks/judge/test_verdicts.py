"""Which of the numbers in a judge's reply is its verdict: a 0 is one, a draft and a thought are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkick.tasks.judge import parse_scores
from llmkick.tasks.judge.prompts import ASPECTS, read_reply, reply_schema
from llmkick.tasks.judge.replies import CONTRADICTION, OUTSIDE, Unreadable
from llmkick.tasks.judge.verdicts import CUT, NO_NUMBERS, ONLY_A_DRAFT, ONLY_THOUGHTS, JudgeProtocol, without_thoughts
from tasks.judge.judge_grammar import BARE, OWNED, SWAPPED


def verdict(first: Any, second: Any, kind: str = "general") -> str:
    names = list(reply_schema(kind)["required"])[1:]
    pair = {"assistant_1": first, "assistant_2": second}
    return json.dumps({"explanation": "Why {so}.", **dict.fromkeys(names, pair)})


# Zero


def test_four_lines_of_a_failed_summary():
    reply = "10 0\n10 0\n10 0\n10 0\nAssistant 1 summarised the story; Assistant 2 repeated one word."
    assert parse_scores(reply, "summary") == ((10, 0),) * 4
    assert parse_scores(reply.replace("10 0", "0 10"), "summary") == ((0, 10),) * 4
    assert parse_scores(reply.replace("10 0", "0 0"), "summary") == ((0, 0),) * 4
    named = "\n".join(f"{aspect}: 9/10 0/10" for aspect in ASPECTS)
    assert parse_scores(named, "summary") == ((9, 0),) * 4
    table = "| | Assistant 1 | Assistant 2 |\n|--|--|--|\n" + "\n".join(f"| {aspect} | 0 | 8 |" for aspect in ASPECTS)
    assert parse_scores(table, "summary") == ((0, 8),) * 4
    worded = "\n".join(f"{aspect}: Assistant 2: 0, Assistant 1: 7" for aspect in ASPECTS)
    assert parse_scores(worded, "summary") == ((7, 0),) * 4


@pytest.mark.parametrize("zero", ["0", "0.0", "0.00"])
@pytest.mark.parametrize("form", range(len(OWNED)))
def test_zero_is_read_in_every_form_that_has_owners(form: int, zero: str):
    for kind in ("general", "coding", "maths"):
        assert parse_scores(OWNED[form](zero, "9"), kind) == (0, 9)
        assert parse_scores(OWNED[form]("8.5", zero), kind) == (8.5, 0)
        assert parse_scores(OWNED[form](zero, zero), kind) == (0, 0)


@pytest.mark.parametrize("form", range(len(BARE)))
def test_zero_behind_a_name_is_treated_like_any_number(form: int):
    read_in_maths = parse_scores(BARE[form]("8", "9"), "maths") is not None
    for first, second in (("0", "9"), ("9", "0"), ("0", "0")):
        expected = (float(first), float(second))
        assert parse_scores(BARE[form](first, second), "general") == expected
        assert parse_scores(BARE[form](first, second), "maths") == (expected if read_in_maths else None)


@pytest.mark.parametrize("form", range(len(SWAPPED)))
def test_zero_does_not_go_to_the_other_assistant(form: int):
    assert parse_scores(SWAPPED[form]("0", "9"), "general") in (None, (0, 9))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("[[10]] [[0]]", (10, 0)),
        ("Assistant 1: [[8]]\nAssistant 2: [[0]]", (8, 0)),
        ("[[0/10]] [[7/10]]", (0, 7)),
        ("0 out of 10 for Assistant 1 and 7 out of ten for Assistant 2", (0, 7)),
        ("- 0 7", (0, 7)),
        ("[[0]]", None),
        ("0", None),
        ("0/10", None),
        ('{"score": 0}', None),
        ("0-10", None),
        ("0/7", None),
        ("0% 70%", None),
        ("0,5 7,5", None),
        ("-0 7", None),
        ("-0.5 7", None),
        ("10.01 0", None),
        ("Assistant 1 makes 0 mistakes and Assistant 2 makes 2.", None),
    ],
)
def test_zero_in_other_forms(text: str, scores: tuple[float, float] | None):
    assert parse_scores(text, "general") == scores


@pytest.mark.parametrize("kind", ["general", "coding", "maths", "summary"])
def test_zero_in_json(kind: str):
    pairs = len(ASPECTS) if kind == "summary" else 1
    assert read_reply(verdict(0, 9, kind), kind, "strict") == ((0, 9),) * pairs
    assert read_reply(verdict(10, 0.0, kind), kind, "strict") == ((10, 0),) * pairs
    assert read_reply(verdict(0, 0, kind), kind, "strict") == ((0, 0),) * pairs
    for outside in (-1, -0.5, 11, 10.5, 10**400, float("nan"), float("inf")):
        assert read_reply(verdict(0, outside, kind), kind, "strict") == OUTSIDE


# Thoughts


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("<think>5 5, or 6 6</think>\n8 0", "8 0"),
        ("<think>\n5 5\n</think>\n\n<reflection>6 6</reflection>\n8 0", "8 0"),
        ("First 5 5, then\n6 6\n</think>\n\n8 0", "8 0"),
        ("That is 5 5 </think>\n8 0", "8 0"),
        ("[THINK]5 5[/THINK]8 0", "8 0"),
        ("◁think▷5 5◁/think▷8 0", "8 0"),
        ("<|channel|>analysis<|message|>5 5<|end|><|start|>assistant<|channel|>final<|message|>8 0", "8 0"),
        ("analysisLet me see: 5 5.assistantfinal8 0", "8 0"),
        ("8 0\n<think>\nWas 5 5", "8 0"),
        ("<analysis>5 5</analysis>\n8 0", "8 0"),
        ("<draft>5 5</draft>\n<reasoning>6 6</reasoning>8 0", "8 0"),
        ("<think>5 5", None),
        ("<analysis>5 5</analysis>", None),
        ("<|channel|>analysis<|message|>5 5", None),
    ],
)
@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_a_draft_in_thoughts_is_no_verdict(reply: str, left: str | None, protocol: JudgeProtocol):
    said = without_thoughts(reply)
    assert (said if said is None else said.strip()) == left
    assert read_reply(reply, "general", protocol) == (((8, 0),) if left else ONLY_THOUGHTS)
    as_json = reply.replace("8 0", verdict(8, 0)).replace("5 5", verdict(5, 5))
    assert read_reply(as_json, "general", "strict") == (((8, 0),) if left else ONLY_THOUGHTS)


def test_a_tag_that_the_judge_mentions_takes_nothing_away():
    reply = '{"explanation": "It ends with </think> and no answer.", "overall": {"assistant_1": 8, "assistant_2": 0}}'
    assert read_reply(reply, "general", "strict") == ((8, 0),)
    assert read_reply("8 0\nAssistant 2 says </think> at once.", "general", "paper") == ((8, 0),)
    assert read_reply("8 0\nAssistant 2 opens a <think> tag and never closes it.", "general", "paper") == ((8, 0),)


# Drafts


@pytest.mark.parametrize(
    "reply",
    [
        "Draft:\n{draft}\n\nFinal verdict:\n{final}",
        "Draft: {draft}\n{final}",
        "```json\n{draft}\n```\nOn reflection, Assistant 2 says nothing.\n```json\n{final}\n```",
        "{draft}\nFinal:\n{final}",
        "{draft}\n**Revised scores:** {final}",
        "My first impression:\n{draft}\nA second draft:\n{middle}\nSo the final JSON is {final}",
        "Before my final verdict, a draft:\n{draft}\nFinal verdict:\n{final}",
        "<think>{draft}</think>{final}",
        "{final}\nFinal verdict:\n{final}",
        "Assistant 1: 5/10, Assistant 2: 5/10, I think.\n{final}",
        '{{"explanation": "5 5", "overall": {{"assistant_1": 5\n\n{final}',
    ],
)
def test_the_final_json_counts(reply: str):
    text = reply.format(draft=verdict(5, 5), middle=verdict(6, 2), final=verdict(8, 0))
    assert read_reply(text, "general", "strict") == ((8, 0),)


@pytest.mark.parametrize(
    "reply",
    [
        "{draft}{final}",
        "{draft}\nor\n{final}",
        "Final verdict:\n{draft}\nFinal verdict:\n{final}",
        "Draft:\n{draft}\n{middle}\n{final}",
        "{draft}\nDraft:\n{final}",
        "Assistant 1's final answer is wrong.\n{draft}\nAssistant 2's final answer is right.\n{final}",
    ],
)
def test_verdicts_that_differ_without_a_word_contradict_each_other(reply: str):
    text = reply.format(draft=verdict(5, 5), middle=verdict(6, 2), final=verdict(8, 0))
    assert read_reply(text, "general", "strict") == CONTRADICTION


def test_a_draft_alone_is_no_verdict():
    draft = f"First draft:\n{verdict(5, 5)}\n"
    assert read_reply(draft, "general", "strict") == ONLY_A_DRAFT
    assert read_reply(draft, "general", "strict", cut=True) == CUT
    begun = draft + "Final verdict:\n" + verdict(8, 0)[:-9]
    assert read_reply(begun, "general", "strict", cut=True) == CUT
    assert isinstance(read_reply(begun, "general", "strict"), Unreadable)
    prose = "I lean to\n5 5\n" + verdict(8, 0)[:30]
    assert isinstance(read_reply(prose, "general", "strict"), Unreadable)
    # A verdict that was complete before the reply was cut is one.
    assert read_reply(verdict(8, 0) + verdict(8, 0)[:-9], "general", "strict", cut=True) == ((8, 0),)


NOT_QUITE_JSON = (
    # A backslash that JSON does not know, as LaTeX in an explanation has it; one that it knows, already doubled.
    r'{"explanation": "\(x^2\) with \sqrt{2} is \\frac{1}{2}.", "overall": {"assistant_1": 9, "assistant_2": 4}}',
    '{"explanation": "Two\nlines.", "overall": {"assistant_1": 9, "assistant_2": 4}}',
    "{'explanation': 'It\\'s 1 {or} 2.', 'overall': {'assistant_1': 9, 'assistant_2': 4}}",
    '{"explanation": "I gave 4/10 to Assistant 1 and 9/10 to Assistant 2 at first.", "overall": '
    '{"assistant_1": "9", "assistant_2": "4/10"}}',
)


@pytest.mark.parametrize("kind", ["general", "coding", "maths"])
@pytest.mark.parametrize("reply", NOT_QUITE_JSON)
def test_a_reply_that_is_nearly_json_has_the_scores_of_its_object(reply: str, kind: str):
    assert read_reply(reply, kind, "strict") == ((9, 4),)
    assert read_reply(f"Here it is:\n```json\n{reply}\n```", kind, "strict") == ((9, 4),)


@pytest.mark.parametrize("kind", ["general", "maths"])
def test_scores_in_the_explanation_of_an_object_are_no_verdict(kind: str):
    explanation = "I gave 9/10 to Assistant 1 and 2/10 to Assistant 2 at first."
    reply = {"explanation": explanation, "overall": {"assistant_1": "weak", "assistant_2": "good"}}
    assert read_reply(json.dumps(reply), kind, "strict") == NO_NUMBERS


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("I give Assistant 2 and Assistant 1 the scores (9, 4).", "general", None),
        ("Assistant 2 and Assistant 1 get the scores (9, 4) respectively.", "coding", None),
        ("For Assistant 2 and Assistant 1 respectively, my scores are 9 and 4.", "general", None),
        ("For Assistant 2 and Assistant 1 my score tuple is (9, 4).", "maths", None),
        ("Assistant 2 errs. For Assistant 1 and Assistant 2 my scores are 9 and 4.", "general", (9, 4)),
        ("Assistant 1 and Assistant 2 get the scores (9, 4).", "maths", (9, 4)),
        ("My scores are 9 and 4.", "maths", (9, 4)),
        # What a problem speaks of is no verdict.
        ("The mean of the test scores (4, 8) is 6, as Assistant 1 says.", "maths", None),
        ("The exam scores are 3 and 5, so the mean is 4.\n\nAssistant 1 is right.", "maths", None),
        ("Both programs print\n3 4\nfor the input. Assistant 1 deserves a 9, Assistant 2 a 5.", "coding", None),
    ],
)
def test_scores_inside_a_sentence_belong_to_whom_it_names(text: str, kind: str, expected: object):
    assert parse_scores(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("5 5\n\nOn reflection, the final scores are 8 and 0.", "general", (8, 0)),
        ("5 5\nFinal verdict: 8 0", "coding", (8, 0)),
        ("Scores: (5, 5)\nRevised scores: (8, 0)\nThese final scores are fair.", "maths", (8, 0)),
        ("5 5\n8 0", "general", None),
        ("5 5\n\nIn my view it is\n8 0", "general", None),
        ("The final answer is\n(3, 4)\nas both say.", "maths", None),
        ("5 5\n5 5\n5 5\n5 5\n\n**Final scores:**\n8 0\n8 0\n8 0\n8 0", "summary", ((8, 0),) * 4),
        ("5 5\n5 5\n5 5\n5 5\n\n8 0\n8 0\n8 0\n8 0", "summary", None),
    ],
)
def test_the_final_scores_of_a_text_count(text: str, kind: str, expected: object):
    assert parse_scores(text, kind) == expected


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("reply", ["", "<think>Both answers are", "Assistant 1 is", "10 0\n10"])
def test_a_reply_that_was_cut_before_its_verdict_says_so(reply: str, protocol: JudgeProtocol):
    assert read_reply(reply, "summary", protocol, cut=True) == CUT
