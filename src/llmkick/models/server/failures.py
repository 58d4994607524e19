"""Failures of an endpoint: which are transient, how long to wait before a retry, and which replies are malformed.

Failures are the openai library's and `MalformedReplyError`; `models.server.endpoint` says what they mean to a user.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
import tenacity
from openai import BaseModel
from openai.types.chat import ChatCompletion

from llmkick.errors import KickError
from llmkick.models.clean_text import clean_text, clean_value
from llmkick.models.server.address import Address
from llmkick.models.server.differences import error_text
from llmkick.models.server.replies import final_text

# Seconds between two attempts, at first and at most, and the longest wait that a server may ask for.
FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED_WAIT = 0.5, 60.0, 600.0
# Status codes that every other request would get too: the key or the name is wrong.
PERMANENT = {401, 403, 404}
# An account without credit answers 429, "too many requests", but waiting does not help.
NO_CREDIT = "insufficient_quota"
# The status of an error that names none, by its code or its type, as OpenAI and Anthropic send them.
STATUS_OF_NAME = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    NO_CREDIT: 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}
_STATUS = re.compile(r"([45][0-9]{2})(?:\.0)?")
_LIMIT_REACHED = re.compile(r"(?:max_tokens|max_completion_tokens|output limit).{0,40}reached", re.IGNORECASE)


class MalformedReplyError(Exception):
    """A reply that breaks the interface: it is not JSON, is cut short, or has no answer."""


class ErrorInReplyError(Exception):
    """An error that a reply of status 200 holds in place of an answer, as gateways send it.

    status_code: the one that it names. The attributes are those of the library's APIStatusError.
    """

    def __init__(self, status_code: int, body: Mapping[str, Any]) -> None:
        super().__init__(str(body.get("message") or body))
        self.status_code, self.body = status_code, body
        self.code, self.type = body.get("code"), body.get("type")


STATUS_ERRORS = openai.APIStatusError, ErrorInReplyError


def is_transient(failure: BaseException | None) -> bool:
    """Whether the same request may succeed later: lost connections, time-outs, rate limits, errors of the server,
    malformed replies. A server that asks for a longer wait than LONGEST_ASKED_WAIT is not waited for.

    `failure` is the openai library's exception, which is the `__cause__` of the errors that an Endpoint raises.
    """
    if isinstance(failure, STATUS_ERRORS):
        passing = failure.status_code in (408, 409, 425, 429) or failure.status_code >= 500
        return passing and not is_out_of_credit(failure) and not asks_for_too_long(failure)
    return isinstance(failure, openai.APIConnectionError | openai.APIResponseValidationError | MalformedReplyError)


def is_limit_reached(failure: BaseException | None) -> bool:
    """Whether a server refused to show a reply whose token limit ended it before its text, in a thought."""
    return failure is not None and bool(_LIMIT_REACHED.search(error_text(failure)))


def is_permanent(error: KickError) -> bool:
    """Whether every other request would fail as this one did: wrong key, unknown name, no credit, a limit for hours."""
    failure = error.__cause__
    if failure is None or getattr(failure, "status_code", None) in PERMANENT:
        return True
    return is_out_of_credit(failure) or asks_for_too_long(failure)


def is_out_of_credit(failure: BaseException) -> bool:
    """Whether the account behind the key has no credit left."""
    return isinstance(failure, STATUS_ERRORS) and NO_CREDIT in (failure.code, failure.type)


def retry_wait(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: what the server asks for, otherwise twice as long each time, with jitter."""
    asked = asked_wait(state.outcome.exception() if state.outcome is not None else None)
    if asked is not None:
        return asked
    return tenacity.wait_exponential_jitter(multiplier=FIRST_WAIT, max=LONGEST_WAIT, jitter=FIRST_WAIT)(state)


def asked_wait(failure: BaseException | None) -> float | None:
    """The seconds that a server asks to wait in Retry-After, a number or a date; None where it asks for none."""
    text = str(getattr(getattr(failure, "response", None), "headers", {}).get("retry-after", ""))
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):  # no date
            return None
        # The dates of HTTP are in UTC, also those that do not say so (RFC 9110, section 5.6.7).
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def asks_for_too_long(failure: BaseException) -> bool:
    """Whether a server asks for a longer wait than LONGEST_ASKED_WAIT."""
    return (asked_wait(failure) or 0) > LONGEST_ASKED_WAIT


def redirect_target(failure: BaseException) -> str:
    """Where a redirect that was not followed leads, without what may be secret; empty for any other failure."""
    if not (isinstance(failure, openai.APIStatusError) and failure.response.has_redirect_location):
        return ""
    target = failure.response.url.join(failure.response.headers["location"])
    return str(target.copy_with(userinfo=b"", query=None, fragment=None))


def checked_reply(call: Callable[[], Any], check: Callable[[Any], Any]) -> Any:
    """The reply of a call as `check` returns it; MalformedReplyError where it is no JSON.

    The library returns a body that is not JSON as text, and raises JSONDecodeError for one that is cut short.
    """
    try:
        reply = call()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MalformedReplyError(f"its reply is no JSON ({error})") from error
    if isinstance(reply, str):
        raise MalformedReplyError(f"its reply is no JSON but: {clean_text(reply)}")
    return check(reply)


def plain_body(body: Any) -> Any:
    """A list or an object of JSON; MalformedReplyError for anything else."""
    if not isinstance(body, list | dict):
        raise MalformedReplyError("its reply is neither a list nor an object")
    return body


def complete_reply(reply: Any, *, text_needed: bool) -> Any:
    """A reply with an answer, its text cleaned; MalformedReplyError where it has none."""
    _raise_error_of(reply)
    choices = getattr(reply, "choices", None)
    if not (isinstance(choices, list) and choices and all(isinstance(choice, BaseModel) for choice in choices)):
        raise MalformedReplyError("its reply holds no answer")
    reply = _cleaned(reply)
    if text_needed and isinstance(reply, ChatCompletion):
        final = final_text(reply)
        # A reply that was cut before its text, or in a thought, is as good as the server can give.
        if not (final.text or final.has_thought or final.cut):
            raise MalformedReplyError("its reply has no text")
    return reply


def _raise_error_of(reply: Any) -> None:
    """Raise the error that a reply holds in place of an answer: ErrorInReplyError where its status is known."""
    error = getattr(reply, "error", None)
    if not error and getattr(reply, "object", None) == "error":
        error = reply.to_dict(warnings=False)
    if not error:
        return
    said = error if isinstance(error, dict) else {"message": str(error), "code": getattr(reply, "code", None)}
    status = _status_of(said)
    if status is None:
        raise MalformedReplyError(f"its reply holds an error: {clean_text(str(said.get('message') or error))}")
    raise ErrorInReplyError(status, said)


def _status_of(error: Mapping[str, Any]) -> int | None:
    """The status that an error names as a number, else the one of its code or type; None where neither is known."""
    values = [error.get(key) for key in ("code", "status", "status_code", "type")]
    numbers = [int(match[1]) for value in values if (match := _STATUS.fullmatch(str(value)))]
    # The type is the kind of a code: an unknown key is an "invalid_request_error" too.
    names = [STATUS_OF_NAME[value] for value in values if isinstance(value, str) and value in STATUS_OF_NAME]
    return next(iter([*numbers, *names]), None)


def _cleaned(reply: BaseModel) -> BaseModel:
    """The reply with clean text everywhere: half a character would end the run where its text is written."""
    values = reply.to_dict(warnings=False)
    clean = clean_value(values)
    return reply if clean is values else type(reply).construct(**clean)


def is_connection(failure: BaseException) -> bool:
    """Whether a server could not be reached, and no time-out is the reason."""
    return isinstance(failure, openai.APIConnectionError) and not isinstance(failure, openai.APITimeoutError)


def explanation(
    failure: Exception, address: Address, *, said: str, tried: str, timeout: float, key_variable: str
) -> str:
    """What happened and what to do about it. `said` are the server's words, `tried` how often it was asked."""
    url, name = address.url, address.name
    if isinstance(failure, openai.APITimeoutError):
        return (
            f"{url} did not answer within {timeout:g} s{tried}: give it longer (timeout), "
            "or fewer requests at once (concurrency)"
        )
    if is_connection(failure):
        return f"cannot reach {url}{tried}: {said}; is the server running, and the address right?"
    status = getattr(failure, "status_code", None)
    if status in (401, 403):
        return f"{url} does not accept the key: {said}; set {key_variable}"
    if status == 404:
        return (
            f"{url} knows no {name!r}, or has no such endpoint: {said}; "
            "most addresses end in /v1, and /v1/models lists the names"
        )
    if is_out_of_credit(failure):
        return f"{url} wants to be paid: {said}; add credit to the key's account"
    if redirect_target(failure):
        return f"{url} redirects to {said}, where headers from the environment are not sent; give that address"
    if asks_for_too_long(failure):
        return f"{url} asks to wait for {asked_wait(failure):,.0f} s: {said}; go on later"
    if status is not None:
        return f"{url} fails with status {status}{tried}: {said}"
    return f"{url} does not answer as an OpenAI-compatible server{tried}: {said}"
