"""What servers refuse although others take it: parameters by another name or not at all, and roles of a conversation.

A server says what it refuses in its error message. The request is sent again without it, and where that helps, all
later requests to the server are too. Nothing is changed in silence: each `Change` has a line for the reader. What a
change would make another question (`logprobs`, `echo`, the text itself) is never dropped.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmkick.models.clean_text import clean_text
from llmkick.models.language_model import Message
from llmkick.models.turns import FOLDED, JOINED, joined_turns, without_system

# The parameter that holds the variables of the chat template.
TEMPLATE_OPTIONS = "chat_template_kwargs"
# Parameters that can be left out, and what that means.
_OPTIONAL: Mapping[str, str] = {
    "response_format": "its replies are not bound to a form",
    TEMPLATE_OPTIONS: "its template cannot be told whether to think",
    "seed": "its answers may differ from one run to the next",
    "stop": "answers are cut here, and it writes more than is read",
    "frequency_penalty": "a penalty that it applies by itself stays",
    "temperature": "it samples as it likes, so answers may differ from one run to the next",
    "max_tokens": "its answers have no limit on their length",
}
# The name of the limit in newer interfaces.
_NEWER = {"max_tokens": "max_completion_tokens"}
# Limits on values that are lowered or raised to what the server allows.
_BOUNDED = ("top_logprobs", "logprobs", "max_tokens", "max_completion_tokens")
_AT_MOST = re.compile(
    r"(?:<=|≤|less than or equal to|at most|no more than|max(?:imum)?(?: (?:allowed|value|of|is))*:?|up to"
    r"|between -?\d+ and|\[\s*-?\d+\s*,)\s*(\d+)",
    re.IGNORECASE,
)
_AT_LEAST = re.compile(
    r"(?:>=|≥|greater than or equal to|at least|min(?:imum)?(?: (?:allowed|value|of|is))*:?)\s*(\d+)", re.IGNORECASE
)
# A message about the size of a request: without its parameters the request would be as large.
_SIZE = re.compile(
    r"too (?:large|long|many|small|low)|context|exceed|output limit|length of|higher|larger", re.IGNORECASE
)
_SYSTEM_ROLE = re.compile(
    r"system (?:role|message|prompt|instruction)s?\b.*\b(?:not|n't|only|must)|developer instruction is not"
    r"|(?:not|n't|unsupported|unknown|invalid|unexpected|only)\b.*\bsystem\b|only user",
    re.IGNORECASE | re.DOTALL,
)
_REFUSES = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|extra|permitted|allowed|invalid|(?:must|should) be|implemented|option"
    r"|requested",
    re.IGNORECASE,
)
_ALTERNATE = re.compile(r"\balternat|consecutive|same role", re.IGNORECASE)


@dataclass(frozen=True)
class Change:
    """A change of requests to one server. `what` is a parameter, or "system" or "turns" of a conversation."""

    kind: Literal["drop", "rename", "at most", "at least", "conversation"]
    what: str
    value: int = 0

    def apply(self, request: dict[str, Any]) -> None:
        """Change a request in place; one that has no such parameter stays as it is."""
        extra = request.get("extra_body") or {}
        if self.kind == "conversation" and "messages" in request:
            change = without_system if self.what == "system" else joined_turns
            turns = change([Message(**message) for message in request["messages"]])
            request["messages"] = [turn._asdict() for turn in turns]
        elif self.kind == "drop" and self.what in extra:
            request["extra_body"] = {name: value for name, value in extra.items() if name != self.what}
        elif self.what in request and self.kind == "drop":
            del request[self.what]
        elif self.what in request and self.kind == "rename":
            request[_NEWER[self.what]] = request.pop(self.what)
        elif self.what in request and type(request[self.what]) is int:
            choose = min if self.kind == "at most" else max
            request[self.what] = choose(request[self.what], self.value)

    @property
    def note(self) -> str:
        """What a reader has to know."""
        if self.kind == "conversation":
            return FOLDED if self.what == "system" else JOINED
        if self.kind == "rename":
            return f"it refuses {self.what}; the limit is sent as {_NEWER[self.what]}"
        if self.kind == "drop":
            plain = {newer: old for old, newer in _NEWER.items()}.get(self.what, self.what)
            return f"it refuses {self.what}, which is left out: {_OPTIONAL[plain]}"
        return f"it takes {self.what} of {self.kind} {self.value}, and gets that"


class Differences:
    """What one server refuses, learnt from its refusals; threads share it."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._lock = threading.Lock()

    def applied(self, request: Mapping[str, Any], more: Sequence[Change] = ()) -> dict[str, Any]:
        """The request with all changes known to help, and with those in `more`."""
        with self._lock:
            changes = [*self._changes, *(change for change in more if change not in self._changes)]
        changed = dict(request)
        for change in changes:
            change.apply(changed)
        return changed

    def remember(self, changes: Sequence[Change]) -> None:
        """Make changes with which the server answered apply to all later requests."""
        with self._lock:
            self._changes += [change for change in changes if change not in self._changes]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the answers has to know, a line for each change."""
        with self._lock:
            return tuple(change.note for change in self._changes)


def change_for(failure: BaseException | None, request: Mapping[str, Any]) -> Change | None:
    """The change that a refusal asks for; None where the request itself is at fault."""
    said = error_text(failure)
    conversation = _conversation_change(said, request)
    if conversation is not None:
        return conversation
    named = _named(failure, said, request)
    if named is None:
        return None
    bound = _bound(named, said, request)
    if bound is not None:
        return bound
    if named in ("max_tokens", "max_completion_tokens") and _SIZE.search(said):
        return None
    if named in _NEWER:
        return Change("rename", named)
    droppable = named in _OPTIONAL or named in _NEWER.values()
    return Change("drop", named) if droppable else None


def _conversation_change(said: str, request: Mapping[str, Any]) -> Change | None:
    messages = [Message(**message) for message in request.get("messages") or []]
    alternate = _ALTERNATE.search(said)
    if alternate and len(joined_turns(messages)) < len(messages):
        return Change("conversation", "turns")
    if (alternate or _SYSTEM_ROLE.search(said)) and any(message.role == "system" for message in messages):
        return Change("conversation", "system")
    return None


def _bound(named: str, said: str, request: Mapping[str, Any]) -> Change | None:
    """A limit that the message states for a value of the request."""
    asked = request.get(named)
    if named not in _BOUNDED or type(asked) is not int:
        return None
    least, most = _AT_LEAST.search(said), _AT_MOST.search(said)
    if least and named.startswith("max_") and int(least[1]) > asked:
        return Change("at least", named, int(least[1]))
    if most and not named.startswith("max_") and 1 < int(most[1]) < asked:
        return Change("at most", named, int(most[1]))
    return None


def _named(failure: BaseException | None, said: str, request: Mapping[str, Any]) -> str | None:
    """The parameter of the request that a refusal names; the first, because a message may list what is allowed."""
    extra: Mapping[str, Any] = request.get("extra_body") or {}
    names = [name for name in (*request, *extra) if name != "extra_body"]
    param = getattr(failure, "param", None)
    if isinstance(param, str) and param:
        return next((name for name in names if re.split(r"[.\[]", param)[0] == name), None)
    for place in _places(failure):
        if place in names:
            return place
    marked = _first(said, names, r"[`'\"]{}[`'\".\[]")
    if marked is None and _REFUSES.search(said):
        marked = _first(said, names, r"(?<![\w.]){}(?!\w)")
    if marked is None and any(name in said for name in extra.get(TEMPLATE_OPTIONS) or {}):
        return TEMPLATE_OPTIONS
    return marked


def _first(said: str, names: Sequence[str], pattern: str) -> str | None:
    mentions = [(match.start(), -len(name), name) for name in names if (match := re.search(pattern.format(name), said))]
    return min(mentions)[2] if mentions else None


def _places(failure: BaseException | None) -> list[str]:
    """The places of errors in the form of FastAPI: {"detail": [{"loc": ["body", "seed"], "msg": …}]}."""
    body = getattr(failure, "body", None)
    detail = body.get("detail") if isinstance(body, Mapping) else None
    errors = [error for error in detail if isinstance(error, Mapping)] if isinstance(detail, list) else []
    places: list[str] = []
    for error in errors:
        where = error.get("loc")
        places += map(str, where) if isinstance(where, list) else []
    return places


def error_text(failure: BaseException | None) -> str:
    """What a server says in an error, in whatever part of the reply's body."""
    return " ".join(_texts(getattr(failure, "body", None))) or str(failure)


def _texts(body: Any) -> Iterator[str]:
    if isinstance(body, str):
        yield clean_text(body)
    elif isinstance(body, Mapping):
        ordered = sorted(body.items(), key=lambda pair: pair[0] not in ("message", "detail", "error", "msg"))
        for name, value in ordered:
            if name not in ("code", "type", "param", "object", "input", "url"):
                yield from _texts(value)
    elif isinstance(body, list):
        for value in body:
            yield from _texts(value)
