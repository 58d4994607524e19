"""How a question is put to a model: through its chat template, or as raw text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel, Message, Prompt

Prompting = Literal["chat", "raw"]
PROMPTINGS = ("auto", "chat", "raw")

# Two worked examples before every short question, so that a small model answers in a short sentence instead
# of rambling: it is the knowledge that is measured, not the taste for brevity. None of them is in a data set.
SENTENCE_EXAMPLES = (
    ("What is the opposite of full?", "The opposite of full is empty."),
    ("How many ears does a rabbit have?", "A rabbit has two ears."),
)
# The same for options whose bare text is scored.
PHRASE_EXAMPLES = (("What is the opposite of full?", "Empty"), ("How many ears does a rabbit have?", "Two"))


def resolve_prompting(model: LanguageModel, wanted: str) -> Prompting:
    """ "auto" → chat for a model with a chat template, raw for others.

    Raises ConfigError for an unknown style, or chat without a template.
    """
    if wanted not in PROMPTINGS:
        raise ConfigError(f"unknown prompting {wanted!r}; choose from: {', '.join(PROMPTINGS)}")
    if wanted == "chat" and not model.has_chat_template:
        raise ConfigError(f'{model.info.name} has no chat template; use prompting = "raw" (or "auto")')
    if wanted == "raw" or not model.has_chat_template:
        return "raw"
    return "chat"


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
