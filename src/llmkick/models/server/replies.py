"""Parsing of server replies: their text, and log-probabilities of continuations. Sends no requests."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmkick.models.language_model import ContinuationScore, Unanswered

# How tokenizers write a leading space.
SPACES = " ▁Ġ\n\t"
# "B", "B.", "(B)", "**B**" at the beginning; an "A" before a small letter is an article.
LEADING_LETTER = re.compile(r"\W*([A-Z])(?!\w)(?!(?<=A) [a-z])")
NAMED_LETTER = re.compile(r"\b(?i:answer|option|choice)\b(?: is)?:?\W*([A-Z])(?!\w)(?!(?<=A) [a-z])")


def generated_text(reply: Any) -> str | None:
    """The generated text, in a conversation or after raw text; None where there is none."""
    choice = reply.choices[0]
    message = getattr(choice, "message", None)
    text = choice.text if message is None else message.content
    return None if text is None else str(text)


def new_tokens(reply: Any) -> int:
    """New tokens of a reply; 0 where the server does not count."""
    return int(getattr(getattr(reply, "usage", None), "completion_tokens", None) or 0)


def letters_of(continuations: Sequence[str]) -> list[str] | None:
    """The letters, when every continuation is a single capital letter (with or without space before it)."""
    letters = [text.strip() for text in continuations]
    return letters if all(re.fullmatch("[A-Z]", letter) for letter in letters) else None


def echoed_score(choice: Any, prompt: str, continuation: str, *, generated: int) -> ContinuationScore | Unanswered:
    """The log-probability (nats) of `continuation` from the echo of prompt + continuation.

    The last `generated` tokens of the echo are new, but some servers leave them out of the log-probabilities. A token
    that spans the boundary of prompt and continuation counts whole, and sets `boundary_moved`.
    """
    logprobs = getattr(choice, "logprobs", None)
    tokens = list(getattr(logprobs, "tokens", None) or [])
    values = list(getattr(logprobs, "token_logprobs", None) or [])
    ends = [
        end for end in (len(tokens) - generated, len(tokens)) if "".join(tokens[:end]).endswith(prompt + continuation)
    ]
    start, tail = (end := ends[0] if ends else 0), ""
    while start > 0 and len(tail) < len(continuation):
        start -= 1
        tail = tokens[start] + tail
    part = values[start:end]
    if not ends or len(values) != len(tokens):
        return Unanswered(reason="the tokens that the server gives back do not add up to the text")
    if not part or any(value is None or not math.isfinite(value) for value in part):
        return Unanswered(reason="the server gives no finite log-probability for a part of the answer")
    best = list(getattr(logprobs, "top_logprobs", None) or [])[start:end]
    greedy = len(best) == len(part) and all(
        isinstance(likeliest, Mapping) and likeliest and value >= max(likeliest.values()) - 1e-6
        for likeliest, value in zip(best, part, strict=True)
    )
    return ContinuationScore(
        logprob=float(sum(part)), tokens=len(part), is_greedy=greedy, boundary_moved=len(tail) > len(continuation)
    )


def first_token_scores(
    likeliest: Mapping[str, float], continuations: Sequence[str]
) -> list[ContinuationScore | Unanswered]:
    """Scores of single letters from the likeliest first tokens and their log-probabilities (nats).

    A letter that is not among them gets the least of their log-probabilities, which its own cannot exceed. When no
    letter is among them, all are unanswered.
    """
    values = [_token_value(likeliest, text) for text in continuations]
    if not any(value is not None for value in values):
        return [Unanswered(reason=f"none of the letters is among the {len(likeliest)} likeliest tokens")] * len(values)
    least, best = min(likeliest.values()), max(likeliest.values())
    return [
        ContinuationScore(
            logprob=least if value is None else value,
            tokens=1,
            is_greedy=value == best,
            method="first token",
        )
        for value in values
    ]


def _token_value(likeliest: Mapping[str, float], text: str) -> float | None:
    """The value of the exact token, otherwise of the likeliest one that differs only in spaces; None without either."""
    if text in likeliest:
        return likeliest[text]
    return max((value for token, value in likeliest.items() if token.strip(SPACES) == text.strip()), default=None)


def begins_likeliest(text: str | None, likeliest: Mapping[str, float]) -> bool:
    """Whether a greedy answer of one token is the likeliest token of its list; an empty answer counts as agreeing."""
    if len(likeliest) < 2:
        return False
    best = max(likeliest, key=likeliest.__getitem__)
    return not text or best.strip(SPACES) == text.strip(SPACES)


def generated_letter_scores(text: str, letters: Sequence[str]) -> list[ContinuationScore | Unanswered]:
    """Scores without log-probabilities: 0 for the letter that a generated answer names, −inf for the others."""
    match = LEADING_LETTER.match(text) or NAMED_LETTER.search(text)
    if match is None or match[1] not in letters:
        shown = " ".join(text.split())[:60]
        return [Unanswered(reason=f"the answer names no option: {shown!r}" if shown else "the answer is empty")] * len(
            letters
        )
    return [
        ContinuationScore(
            logprob=0.0 if letter == match[1] else -math.inf,
            tokens=1,
            is_greedy=letter == match[1],
            method="generated letter",
        )
        for letter in letters
    ]


def likeliest_in_chat(reply: Any) -> dict[str, float]:
    """The likeliest first tokens of a chat reply; empty where the server gives none."""
    content = getattr(getattr(reply.choices[0], "logprobs", None), "content", None) or []
    alternatives = getattr(content[0], "top_logprobs", None) or [] if content else []
    return _best_of_each((str(entry.token), float(entry.logprob)) for entry in alternatives)


def likeliest_in_completion(reply: Any) -> dict[str, float]:
    """The likeliest first tokens of a completion; empty where the server gives none."""
    positions = getattr(getattr(reply.choices[0], "logprobs", None), "top_logprobs", None) or []
    first = positions[0] if positions and isinstance(positions[0], Mapping) else {}
    return _best_of_each((str(token), float(value)) for token, value in first.items())


def _best_of_each(pairs: Any) -> dict[str, float]:
    best: dict[str, float] = {}
    for token, value in pairs:
        if math.isfinite(value):
            best[token] = max(value, best.get(token, -math.inf))
    return best
