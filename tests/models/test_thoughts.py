"""Thoughts are never part of an answer, however a model marks them and wherever it was cut."""

from __future__ import annotations

import pytest

from llmkick.models.thoughts import Separated, closing_of, may_begin_thought, separate

# Text → its answer, and whether it ends inside a thought.
TEXTS = {
    "plain": ("Paris", "Paris", False),
    "empty": ("", "", False),
    "leading space of a plain answer": (" Paris\n", " Paris\n", False),
    "think": ("<think>\nLyon? No.\n</think>\n\nParis", "Paris", False),
    "an empty thought": ("<think>\n\n</think>\n\nParis", "Paris", False),
    "thinking": ("<thinking>Lyon</thinking> Paris", "Paris", False),
    "reasoning": ("<reasoning>Lyon</reasoning>\nParis", "Paris", False),
    "thought": ("<thought>Lyon</thought>Paris", "Paris", False),
    "capitals": ("<THINK>Lyon</THINK>Paris", "Paris", False),
    "spaces in the marks": ("<think >Lyon</think >Paris", "Paris", False),
    "an attribute": ('<think effort="high">Lyon</think>Paris', "Paris", False),
    "bars": ("<|thinking|>Lyon<|/thinking|>Paris", "Paris", False),
    "two names": ("<think>Lyon</thinking>Paris", "Paris", False),
    "seed": ("<seed:think>Lyon</seed:think>Paris", "Paris", False),
    "Mistral": ("[THINK]Lyon[/THINK]Paris", "Paris", False),
    "Cohere": ("<|START_THINKING|>Lyon<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>", "Paris", False),
    "Kimi": ("◁think▷Lyon◁/think▷Paris", "Paris", False),
    "Gemma": ("<|channel>thought\nLyon<channel|>Paris", "Paris", False),
    "OpenThinker": (
        "<|begin_of_thought|>Lyon<|end_of_thought|>\n\n<|begin_of_solution|>Paris<|end_of_solution|>", "Paris", False,
    ),
    "an answer in tags": ("<think>Lyon</think>\n<answer>Paris</answer>", "Paris", False),
    "an answer in tags that was cut": ("<think>Lyon</think>\n<answer>Par", "Par", False),
    "tags without a thought": ("<answer>Paris</answer>", "<answer>Paris</answer>", False),
    "opened by the prompt": ("Lyon? No.\n</think>\n\nParis", "Paris", False),
    "quoted before its end": ('He said "Lyon"</think>Paris', "Paris", False),
    "code before its end": ("```py\nLyon\n</think>Paris", "Paris", False),
    "cut": ("<think>\nLyon? Or Par", "", True),
    "cut at once": ("<think>", "", True),
    "spaces before": ("\n <think>Lyon", "", True),
    "a second thought": ("<think>Lyon</think>Paris<think>Lyon</think>", "Paris", False),
    "a second thought that was cut": ("<think>Lyon</think>Paris\n<think>Lyon", "Paris\n", True),
    "between words": ("It is <think>Lyon</think>Paris", "It is Paris", False),
    "a mark inside": ("<think>What is <think>? Lyon</think>Paris", "Paris", False),
    "another mark inside": ("<think>[THINK]Lyon[/THINK]</reasoning>Lyon</think>Paris", "Paris", False),
    "of which it speaks": ("Write `<think>` before and `</think>` after it.",) * 2 + (False,),
    "of which it speaks, unclosed": ("The tag <think> opens a thought.",) * 2 + (False,),
    "in code": ("Use:\n```xml\n<reasoning>\nx\n</reasoning>\n```\nThat is all.",) * 2 + (False,),
    "channels": (
        "<|channel|>analysis<|message|>Lyon?<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>",
        "Paris", False,
    ),
    "channels without messages": ("<|channel|>analysisLyon<|channel|>final<|message|>Paris", "Paris", False),
    "channels after their mark": ("analysis<|message|>Lyon<|end|><|channel|>final<|message|>Paris", "Paris", False),
    "channels with a format": (
        "<|channel|>analysis<|message|>Lyon<|end|><|channel|>final <|constrain|>json<|message|>{}", "{}", False,
    ),
    "channels, cut": ("<|channel|>analysis<|message|>The user asks", "", True),
    "channels, a remark": ("<|channel|>commentary<|message|>Lyon<|end|>", "", True),
    "channels without special tokens": ("analysisThe user asks. Lyon?assistantfinalParis", "Paris", False),
    "channels without special tokens, cut": ("analysisThe user asks", "", True),
    "a word like a channel": ("analysis of the data: Paris",) * 2 + (False,),
    "Granite": ("Here is my thought process:\nLyon\n\nHere is my response:\nParis", "Paris", False),
    "Granite, cut": ("Here is my thought process:\nLyon", "", True),
    "Apriel": (
        "Here are my reasoning steps:\nLyon\n[BEGIN FINAL RESPONSE]\nParis\n[END FINAL RESPONSE]", "Paris\n", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "answer", "unfinished"), TEXTS.values(), ids=TEXTS)
def test_the_answer_is_what_is_no_thought(text: str, answer: str, unfinished: bool):
    separated = separate(text)
    assert (separated.answer, separated.unfinished) == (answer, unfinished)
    assert "Lyon" not in separated.answer


@pytest.mark.parametrize("text", [TEXTS[name][0] for name in TEXTS if "Lyon" in TEXTS[name][0]])
def test_the_thought_is_kept_apart(text: str):
    assert "Lyon" in separate(text).thought


@pytest.mark.parametrize(("text", "answer"), [("Lyon</think>Paris", "Paris"), ("<think>Lyon[/THINK]Paris", "Paris")])
def test_a_thought_that_the_prompt_opened(text: str, answer: str):
    assert separate(text, opened=True).answer == answer
    assert separate("Lyon", opened=True) == Separated("", "Lyon", unfinished=True)


@pytest.mark.parametrize(
    ("text", "only"),
    [("", False), ("<think>\n\n</think>", False), ("<think>x</think>", True), ("<think>", True), ("x", False)],
)
def test_an_empty_answer_is_told_from_a_thought_alone(text: str, only: bool):
    assert separate(text).is_only_thought is only


@pytest.mark.parametrize(
    ("prompt", "closing"),
    [
        ("<|im_start|>assistant\n<think>\n", "</think>"),
        ("<|Assistant|><think>", "</think>"),
        ("[INST]x[/INST][THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|think|>", "<|/think|>"),
        ('<think effort="high">\n', "</think>"),
        ("◁think▷", "◁/think▷"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
        ("<think> is a tag.<|im_start|>assistant\n", None),
        ("", None),
    ],
)
def test_what_closes_the_thought_that_a_prompt_opens(prompt: str, closing: str | None):
    assert closing_of(prompt) == closing
    if closing is not None:
        assert separate(f"Lyon{closing}Paris").answer == "Paris"


@pytest.mark.parametrize(
    ("text", "may"),
    [("<", True), ("<th", True), ("[", True), (" <Think", True), ("", False), ("B", False), ("<b", False)],
)
def test_a_token_that_may_begin_a_mark(text: str, may: bool):
    assert may_begin_thought(text) is may
