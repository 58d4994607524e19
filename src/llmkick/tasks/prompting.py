"""How a question is put to a model: through its chat template, or as raw text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel, Message, Prompt

Prompting = Literal["chat", "raw"]
# What a user may choose; "auto" leaves the style to the model (see `resolve_prompting`).
PromptingChoice = Literal["auto", "chat", "raw"]
PROMPTINGS: tuple[PromptingChoice, ...] = get_args(PromptingChoice)

# Two worked examples before every short question, so that a small model answers in a short sentence instead
# of rambling: it is the knowledge that is measured, not the taste for brevity. None of them is in a data set.
SENTENCE_EXAMPLES = (
    ("What is the opposite of full?", "The opposite of full is empty."),
    ("How many ears does a rabbit have?", "A rabbit has two ears."),
)
# The same for options whose bare text is scored.
PHRASE_EXAMPLES = (("What is the opposite of full?", "Empty"), ("How many ears does a rabbit have?", "Two"))


def resolve_prompting(model: LanguageModel, wanted: str, *, required: Prompting | None = None) -> Prompting:
    """ "auto" → chat for a model with a chat template, raw for others; or the one style that a task requires.

    Raises ConfigError for an unknown style, chat without a template, or a style that the task cannot be asked in.
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
    """Raise ConfigError for a style other than the one that a task requires."""
    if wanted not in ("auto", required):
        raise ConfigError(
            f'prompting {wanted!r} contradicts protocol "paper", whose prompts are {required} text; '
            f'use prompting = "{required}" (or "auto")'
        )


def question_prompt(
    question: str, examples: Sequence[tuple[str, str]], prompting: Prompting, *, passage: str = ""
) -> Prompt:
    """A question after its worked examples, with the passage to read where there is one."""
    if prompting == "raw":
        shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in examples)
        context = f"{passage}\n\n" if passage else ""
        return f"{shown}{context}Question: {question}\nAnswer:"
    if passage:
        question = f"Read the passage and answer the question.\n\n{passage}\n\nQuestion: {question}"
    return conversation(question, examples)


def conversation(question: str, examples: Sequence[tuple[str, str]] = ()) -> tuple[Message, ...]:
    """A conversation: each example a user turn and its answer, then the question."""
    turns = [Message(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
    return (*turns, Message("user", question))
