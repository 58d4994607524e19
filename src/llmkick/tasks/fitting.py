"""Fitting of prompts to the model's context: fewer worked examples or a shorter text, never a shorter question."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llmkick.models.language_model import TEMPLATE_TOKENS, TURN_TOKENS, LanguageModel, Message, Prompt
from llmkick.tasks.prompting import Prompting


def styles(model: LanguageModel, required: Prompting | None) -> list[Prompting]:
    """The styles in which a prompt must fit: the style that the task requires, or all styles of the model."""
    if required is not None:
        return [required]
    return ["raw", "chat"] if model.has_chat_template else ["raw"]


def fits(model: LanguageModel, prompts: Sequence[Prompt], answer_tokens: int) -> bool:
    """Whether every prompt leaves room for the answer."""
    return all(_fits(model, prompt, model.max_tokens - answer_tokens) for prompt in prompts)


def _fits(model: LanguageModel, prompt: Prompt, room: int) -> bool:
    # A token covers at least one byte, so for most prompts the byte count shows that they fit, without tokenization.
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    bound = 4 * TEMPLATE_TOKENS + sum(len(message.content.encode()) + 4 * TURN_TOKENS for message in messages)
    return bound <= room or model.prompt_tokens(prompt) <= room


def fewer_shots(
    model: LanguageModel, shots: int, prompts: Callable[[int], Sequence[Prompt]], answer_tokens: int
) -> int:
    """The largest number of worked examples, up to `shots`, with which every prompt fits; 0 if no number fits."""
    return next((count for count in range(shots, 0, -1) if fits(model, prompts(count), answer_tokens)), 0)


def cut_text(model: LanguageModel, text: str, tokens: int) -> str:
    """The longest prefix of the text with at most `tokens` tokens (not counting start tokens), cut between words.

    The cut is inside a word only if the first word alone is too long.
    """
    if tokens <= 0:
        return ""
    start = len(model.tokenize(""))

    def too_long(end: int) -> bool:
        return len(model.tokenize(text[:end])) - start > tokens

    # Start from an estimate and double it, to avoid tokenizing the whole of a long text.
    high = min(len(text), 4 * tokens)
    while not too_long(high):
        if high == len(text):
            return text
        high = min(len(text), 2 * high)
    # Part of a word can have more tokens than the whole word. The token count is monotonic only at word boundaries.
    ends = [match.end() for match in re.finditer(r"\S+", text[:high]) if text[match.end() : match.end() + 1].isspace()]
    return text[: _last(ends, too_long) or _last(range(1, high), too_long)]


def _last(ends: Sequence[int], too_long: Callable[[int], bool]) -> int:
    """The largest of the ascending `ends` that is not too long; 0 if the first is too long."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if too_long(ends[middle]) else (middle + 1, high)
    return ends[low - 1] if low else 0


def shorter_text(
    model: LanguageModel, text: str, prompts: Callable[[str], Sequence[Prompt]], answer_tokens: int
) -> str:
    """The text, truncated by tokens until every prompt with it fits; empty if no prefix fits."""
    room = model.max_tokens - answer_tokens
    while text and not fits(model, prompts(text), answer_tokens):
        excess = max(model.prompt_tokens(prompt) for prompt in prompts(text)) - room
        present = len(model.tokenize(text)) - len(model.tokenize(""))
        # Remove at least one token per step, so that token merges at the boundaries cannot cause an endless loop.
        text = cut_text(model, text, present - max(excess, 1))
    return text
