"""Log-probabilities in the replies of servers, in every shape that servers give them, and the scores made of them.

Two shapes are in use, for conversations and for raw text alike:

    {"content": [{"token": "B", "bytes": [66], "logprob": -0.1, "top_logprobs": [{"token": "B", …}, …]}, …]}
    {"tokens": [" B"], "token_logprobs": [-0.1], "top_logprobs": [{" B": -0.1, …}], …}

Any part may be missing, null, NaN or −infinity (which some servers write as -9999). A number that is not finite is no
log-probability.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkick.models.language_model import ContinuationScore, Unanswered

# How tokenizers write a leading space.
SPACES = " ▁Ġ\n\t"
# What servers write for −infinity, which JSON does not have.
_MINUS_INFINITY = -9999.0
# A token that is not a whole character, as the OpenAI interface writes it: bytes:\xf0\x9f
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
NO_LOG_PROBABILITIES = Unanswered(reason="the server gives no log-probabilities")


@dataclass(frozen=True)
class TokenPosition:
    """A token of a reply: its log-probability (nats), and those of the likeliest tokens in its place."""

    token: bytes
    logprob: float | None
    likeliest: Mapping[str, float] = field(default_factory=dict)


def positions_of(choice: Any) -> list[TokenPosition]:
    """The tokens of a choice with their log-probabilities; empty where the server gives none."""
    logprobs = plain(getattr(choice, "logprobs", None))
    if isinstance(logprobs, list):
        logprobs = {"content": logprobs}
    if not isinstance(logprobs, Mapping):
        return []
    content = _list(logprobs.get("content"))
    if content:
        return [_from_entry(entry) for entry in content]
    tokens, values = _list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs"))
    if len(values) != len(tokens):
        values = [None] * len(tokens)
    top = _list(logprobs.get("top_logprobs"))
    tokens = tokens or [""] * len(top)
    return [
        TokenPosition(_bytes_of(token), number_of(value), _likeliest(alternatives))
        for token, value, alternatives in itertools.zip_longest(tokens, values, top[: len(tokens)])
    ]


def likeliest_first(reply: Any) -> Mapping[str, float]:
    """The likeliest first tokens of a reply with their log-probabilities; empty where the server gives none.

    Some servers put a position without numbers, for the end of the prompt, before the first.
    """
    return next((position.likeliest for position in positions_of(reply.choices[0]) if position.likeliest), {})


def echoed_score(choice: Any, prompt: str, continuation: str, *, generated: int) -> ContinuationScore | Unanswered:
    """The log-probability (nats) of `continuation` from the echo of prompt + continuation.

    The last `generated` tokens of the echo are new, but some servers leave them out of the log-probabilities. A token
    that spans the boundary of prompt and continuation counts whole, and sets `boundary_moved`.
    """
    positions = positions_of(choice)
    if not any(position.logprob is not None for position in positions):
        return NO_LOG_PROBABILITIES
    whole, wanted = f"{prompt}{continuation}".encode(), len(continuation.encode())
    tokens = [position.token for position in positions]
    ends = [end for end in (len(tokens) - generated, len(tokens)) if b"".join(tokens[:end]).endswith(whole)]
    if not ends:
        return Unanswered(reason="the tokens that the server gives back do not add up to the text")
    start, length = ends[0], 0
    while start > 0 and length < wanted:
        start -= 1
        length += len(tokens[start])
    part = positions[start : ends[0]]
    values = [position.logprob for position in part if position.logprob is not None]
    if not part or len(values) < len(part):
        return Unanswered(reason="the server gives no finite log-probability for a part of the answer")
    greedy = all(
        position.likeliest and value >= max(position.likeliest.values()) - 1e-6
        for position, value in zip(part, values, strict=True)
    )
    return ContinuationScore(
        logprob=float(sum(values)), tokens=len(part), is_greedy=greedy, boundary_moved=length > wanted
    )


def first_token_scores(
    likeliest: Mapping[str, float], continuations: Sequence[str]
) -> list[ContinuationScore | Unanswered]:
    """Scores of single letters from the likeliest first tokens and their log-probabilities (nats).

    A letter that is not among them gets the least of their log-probabilities, which its own cannot exceed. When no
    letter is among them, all are unanswered.
    """
    if not likeliest:
        return [NO_LOG_PROBABILITIES] * len(continuations)
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


def begins_likeliest(text: str | None, likeliest: Mapping[str, float]) -> bool:
    """Whether a greedy answer of one token is the likeliest token of its list; an empty answer counts as agreeing."""
    if len(likeliest) < 2:
        return False
    best = max(likeliest, key=likeliest.__getitem__)
    return not text or best.strip(SPACES) == text.strip(SPACES)


def number_of(value: Any) -> float | None:
    """A log-probability in a reply; None for null, NaN, −infinity and everything that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > _MINUS_INFINITY else None


def plain(value: Any) -> Any:
    """An object of the client library as the mapping that the server sent."""
    return value.to_dict(warnings=False) if hasattr(value, "to_dict") else value


def _from_entry(entry: Any) -> TokenPosition:
    entry = plain(entry)
    if not isinstance(entry, Mapping):
        return TokenPosition(b"", None)
    token = _bytes_of(entry.get("token"), entry.get("bytes"))
    return TokenPosition(token, number_of(entry.get("logprob")), _likeliest(entry.get("top_logprobs")))


def _likeliest(alternatives: Any) -> dict[str, float]:
    """Token → log-probability, from {token: value}, [{"token": …, "logprob": …}, …] or [[token, value], …]."""
    best: dict[str, float] = {}
    for token, value in _pairs_of(plain(alternatives)):
        number = number_of(value)
        if number is not None:
            best[token] = max(number, best.get(token, -math.inf))
    return best


def _pairs_of(alternatives: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(alternatives, Mapping):
        for token, value in alternatives.items():
            given = plain(value)  # some servers give {token: {"logprob": …}}
            yield _text_of(token), given.get("logprob") if isinstance(given, Mapping) else given
        return
    for entry in map(plain, _list(alternatives)):
        if isinstance(entry, Mapping) and ("token" in entry or "bytes" in entry):
            yield _text_of(entry.get("token"), entry.get("bytes")), entry.get("logprob")
        elif isinstance(entry, Mapping):
            yield from _pairs_of(entry)
        elif isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) >= 2:
            token, value = (entry[0], entry[1]) if isinstance(entry[0], str) else (entry[-1], entry[0])
            yield _text_of(token), value


def _text_of(token: Any, given: Any = None) -> str:
    return _bytes_of(token, given).decode(errors="replace")


def _bytes_of(token: Any, given: Any = None) -> bytes:
    """The bytes of a token: as the server gives them beside it, or those of its text."""
    if isinstance(given, list) and given and all(type(byte) is int and 0 <= byte < 256 for byte in given):
        return bytes(given)
    if isinstance(token, list) and all(type(byte) is int and 0 <= byte < 256 for byte in token):
        return bytes(token)
    if not isinstance(token, str):
        return b""
    escaped = _BYTES.fullmatch(token)
    return bytes.fromhex(escaped[1].replace("\\x", "")) if escaped else token.encode(errors="replace")


def _token_value(likeliest: Mapping[str, float], text: str) -> float | None:
    """The value of the exact token, otherwise of the likeliest one that differs only in spaces; None without either."""
    if text in likeliest:
        return likeliest[text]
    return max((value for token, value in likeliest.items() if token.strip(SPACES) == text.strip()), default=None)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else []
