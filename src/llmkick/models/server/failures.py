"""Failures of an endpoint: which are transient, how long to wait before a retry, and which replies are malformed.

Failures are the openai library's and `MalformedReplyError`; `models.server.endpoint` says what they mean to a user.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import tenacity
from openai.types.chat import ChatCompletion

from llmkick.errors import KickError

# Seconds between two attempts, at first and at most; a wait that a server asks for is cut to LONGEST_WAIT.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
# Status codes that every other request would get too: the key or the name is wrong.
PERMANENT = {401, 403, 404}
# An account without credit answers 429, "too many requests", but waiting does not help.
NO_CREDIT = "insufficient_quota"


class MalformedReplyError(Exception):
    """A reply that breaks the interface: it is not JSON, is cut short, or has no answer."""


def text_of(reply: Any) -> str | None:
    """The text of a chat reply, or of its refusal; None when there is neither."""
    message = getattr(reply.choices[0], "message", None)
    text = getattr(message, "content", None) or getattr(message, "refusal", None)
    return text if isinstance(text, str) else None


def is_transient(failure: BaseException | None) -> bool:
    """Whether the same request may succeed later: lost connections, time-outs, rate limits, errors of the server,
    malformed replies.

    `failure` is the openai library's exception, which is the `__cause__` of the errors that an Endpoint raises.
    """
    if isinstance(failure, openai.APIStatusError):
        passing = failure.status_code in (408, 409, 425, 429) or failure.status_code >= 500
        return passing and not is_out_of_credit(failure)
    return isinstance(failure, openai.APIConnectionError | openai.APIResponseValidationError | MalformedReplyError)


def is_permanent(error: KickError) -> bool:
    """Whether every other request would fail as this one did: wrong key, unknown name, no credit."""
    failure = error.__cause__
    return failure is None or getattr(failure, "status_code", None) in PERMANENT or is_out_of_credit(failure)


def is_out_of_credit(failure: BaseException) -> bool:
    """Whether the account behind the key has no credit left."""
    return isinstance(failure, openai.APIStatusError) and NO_CREDIT in (failure.code, failure.type)


def retry_wait(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: what the server asks for in Retry-After, otherwise twice as long each time, with jitter."""
    failure = state.outcome.exception() if state.outcome is not None else None
    headers = getattr(getattr(failure, "response", None), "headers", {})
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("retry-after", ""))))
    except ValueError:
        return tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(state)


def complete_reply(call: Callable[[], Any], *, text_needed: bool) -> Any:
    """The reply of a call; MalformedReplyError where it has no answer.

    The library returns a body that is not JSON as text, and raises JSONDecodeError for one that is cut short.
    """
    try:
        reply = call()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MalformedReplyError(f"its reply is no JSON ({error})") from error
    if isinstance(reply, str):
        raise MalformedReplyError(f"its reply is no JSON but: {reply}")
    if not isinstance(getattr(reply, "choices", None) or getattr(reply, "data", None), list):
        raise MalformedReplyError("its reply holds no answer")
    if text_needed and isinstance(reply, ChatCompletion) and text_of(reply) is None:
        raise MalformedReplyError("its reply has no text")
    return reply
