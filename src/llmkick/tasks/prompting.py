"""How a question is put to a model: through its chat template, or as raw text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmkick.errors import ConfigError
from llmkick.models.language_model import LanguageModel, Message, Prompt

Prompting = Literal["chat", "raw"]


def resolve_prompting(model: LanguageModel, wanted: str) -> Prompting:
    """ "auto" → chat for a model with a chat template, raw for others.

    Raises ConfigError for an unknown style, or chat without a template.
    """
    if wanted not in ("auto", "chat", "raw"):
        raise ConfigError(f"unknown prompting {wanted!r}; choose from: auto, chat, raw")
    if wanted == "chat" and not model.has_chat_template:
        raise ConfigError(f'{model.info.name} has no chat template; use prompting = "raw" (or "auto")')
    if wanted == "raw" or not model.has_chat_template:
        return "raw"
    return "chat"


def chat_prompt(question: str, examples: Sequence[tuple[str, str]] = ()) -> Prompt:
    """A conversation: each example a user turn and its answer, then the question."""
    turns = [Message(role, text) for pair in examples for role, text in zip(("user", "assistant"), pair, strict=True)]
    return (*turns, Message("user", question))
