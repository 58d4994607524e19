"""What goes wrong with an endpoint: which failures pass, how long to wait, and when a reply is none.

Failures are the openai library's and `GarbledError`; `models.endpoint` says what they mean to a user.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import tenacity
from openai.types.chat import ChatCompletion

from llmkick.errors import KickError

# Seconds between two attempts: from the first to the longest; what a server asks for counts up to LONGEST_WAIT.
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
# What ends everything: the key, or the name, is wrong.
HOPELESS = {401, 403, 404}
# An account without credit answers 429, "too many requests", but waiting does not help.
NO_CREDIT = "insufficient_quota"


class GarbledError(Exception):
    """A reply that is not what the interface promises: no JSON, half of it, or without an answer."""


def text_of(reply: Any) -> str | None:
    """What a chat's reply says, or with which words the model refuses; None when there is no text."""
    message = getattr(reply.choices[0], "message", None)
    text = getattr(message, "content", None) or getattr(message, "refusal", None)
    return text if isinstance(text, str) else None


def is_passing(failure: BaseException | None) -> bool:
    """Whether the same request may succeed later: connections, time-outs, limits, a server in trouble, half answers.

    `failure` is the library's, which is the `__cause__` of the errors that an Endpoint raises.
    """
    if isinstance(failure, openai.APIStatusError):
        passing = failure.status_code in (408, 409, 425, 429) or failure.status_code >= 500
        return passing and not is_out_of_credit(failure)
    return isinstance(failure, openai.APIConnectionError | openai.APIResponseValidationError | GarbledError)


def is_hopeless(error: KickError) -> bool:
    """Whether, after this error of an Endpoint, every other request would fail too: no key, no such name, no credit."""
    failure = error.__cause__
    return failure is None or getattr(failure, "status_code", None) in HOPELESS or is_out_of_credit(failure)


def is_out_of_credit(failure: BaseException) -> bool:
    """Whether the account behind the key has nothing left to pay with."""
    return isinstance(failure, openai.APIStatusError) and NO_CREDIT in (failure.code, failure.type)


def wait_between(state: tenacity.RetryCallState) -> float:
    """Twice as long each time, with chance in it; or what the server asks for in Retry-After."""
    failure = state.outcome.exception() if state.outcome is not None else None
    headers = getattr(getattr(failure, "response", None), "headers", {})
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("retry-after", ""))))
    except ValueError:
        return tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(state)


def whole_reply(call: Callable[[], Any], *, text_needed: bool) -> Any:
    """The reply, with an answer in it. The library hands what is no JSON on as text, and half of it as an error."""
    try:
        reply = call()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GarbledError(f"its reply is no JSON ({error})") from error
    if isinstance(reply, str):
        raise GarbledError(f"its reply is no JSON but: {reply}")
    if not isinstance(getattr(reply, "choices", None) or getattr(reply, "data", None), list):
        raise GarbledError("its reply holds no answer")
    if text_needed and isinstance(reply, ChatCompletion) and text_of(reply) is None:
        raise GarbledError("its reply has no text")
    return reply
