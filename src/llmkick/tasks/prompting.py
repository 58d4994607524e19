"""Prompt styles: a question goes to the model through its chat template or as raw text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel, Message, Prompt

Prompting = Literal["chat", "raw"]
# The user's choices; with "auto" the style depends on the model (see `resolve_prompting`).
PromptingChoice = Literal["auto", "chat", "raw"]
PROMPTINGS: tuple[PromptingChoice, ...] = get_args(PromptingChoice)

# Worked examples before every short question make a small model answer in one short sentence, so that the score
# measures knowledge, not verbosity. None of the examples is in a data set.
SENTENCE_EXAMPLES = (
    ("What is the opposite of full?", "The opposite of full is empty."),
    ("How many ears does a rabbit have?", "A rabbit has two ears."),
)
# Worked examples for tasks that score the text of each option.
PHRASE_EXAMPLES = (("What is the opposite of full?", "Empty"), ("How many ears does a rabbit have?", "Two"))


def resolve_prompting(model: LanguageModel, wanted: str, *, required: Prompting | None = None) -> Prompting:
    """The prompt style: "auto" is chat for a model with a chat template, else raw; a task can require a style.

    Raises ConfigError for an unknown style, for chat without a template, and for a style that the task rules out.
    """
    if wanted not in PROMPTINGS:
        raise ConfigError(f"unknown prompting {wanted!r}; choose from: {', '.join(PROMPTINGS)}")
    if required is not None:
        refuse_contradiction(wanted, required)
        return required
    if wanted == "chat" and not model.has_chat_template:
        raise ConfigError(f'{model.info.name} has no chat template; use prompting = "raw" (or "auto")')
    if wanted == "raw" or not model.has_chat_template:
        return "raw"
    return "chat"


def refuse_contradiction(wanted: str, required: Prompting) -> None:
    """Raise ConfigError if the chosen style differs from the style that the task requires."""
    if wanted not in ("auto", required):
        raise ConfigError(
            f'prompting {wanted!r} contradicts protocol "paper", whose prompts are {required} text; '
            f'use prompting = "{required}" (or "auto")'
        )


def question_prompt(
    question: str, examples: Sequence[tuple[str, str]], prompting: Prompting, *, passage: str = ""
) -> Prompt:
    """The prompt of a question: the worked examples, the passage (if any) and the question."""
    if prompting == "raw":
        shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in examples)
        context = f"{passage}\n\n" if passage else ""
        return f"{shown}{context}Question: {question}\nAnswer:"
    if passage:
        question = f"Read the passage and answer the question.\n\n{passage}\n\nQuestion: {question}"
    return conversation(question, examples)


def conversation(question: str, examples: Sequence[tuple[str, str]] = ()) -> tuple[Message, ...]:
    """A conversation with a user turn and an answer for each example, followed by the question."""
    turns = [Message(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
    return (*turns, Message("user", question))
