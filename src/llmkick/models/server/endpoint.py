"""An OpenAI-compatible endpoint: its requests, its retries, and the meaning of its errors.

Models behind servers (`models.server.server`) and judges (`tasks.judge.clients`) both use it:

    endpoint = Endpoint(parse_address("openai:http://127.0.0.1:8000/v1#name"), error=JudgeError)
    endpoint.check()                        # before any work: address, key and name, or the error says which
    answers = endpoint.ask_all(endpoint.chat, [{"messages": [...], "max_tokens": 32}, ...])

`chat` and `complete` send a request, with retries, and return the openai library's own types. `ask_all` keeps several
requests in flight and returns, in order, a reply or a `Refused`, the server's objection to that request alone. Every
other failure is raised as `error`, a kind of KickError that the caller chooses. Keys come from the environment only.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import openai
import tenacity
from openai.types import Completion
from openai.types.chat import ChatCompletion

from llmkick.errors import KickError, ModelError
from llmkick.models.clean_text import clean_text, clean_value
from llmkick.models.server.address import COMMON_KEY_VARIABLE, KEY_VARIABLE, Address
from llmkick.models.server.credentials import Credentials, read_credentials
from llmkick.models.server.daemon_threads import DaemonThreads
from llmkick.models.server.differences import Change, Differences, change_for, error_text
from llmkick.models.server.failures import (
    ErrorInReplyError,
    MalformedReplyError,
    checked_reply,
    complete_reply,
    explanation,
    is_connection,
    is_transient,
    plain_body,
    redirect_target,
    retry_wait,
)
from llmkick.models.server.refusals import GREETING, BrokenError, Refused, RefusedError, tiny_request
from llmkick.models.server.replies import model_entries

# The request is at fault: a retry fails again, while other requests may succeed.
REFUSALS = {400, 413, 422}
# Status codes of a server that lacks an endpoint, or an option of it.
NOT_SUPPORTED = {404, 405, 500, 501}
# The server is at fault, perhaps for every request, perhaps only for this one.
BROKEN = 500
# A suffix that names a revision or a date means the same model: "name@main", "name-2026-01-31".
SAME_MODEL = re.compile(r"(@.+|-\d{4}-\d{2}-\d{2})?")
# A name that no server has: a server that answers to it answers to any name.
NO_SUCH_MODEL = "llmkick-no-such-model"

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Endpoint:
    """A model of a server. `timeout` is in seconds a request; `attempts` counts the first try and the retries.

    `concurrency` is the number of requests in flight; `api_key_env` is the variable that holds the key, by default
    LLMKICK_API_KEY, then OPENAI_API_KEY (sent only over https or within this machine). With `any_name`, the model that
    answers may have another name, as when a short name means its newest version. With `text_needed`, a chat reply
    without text is malformed, and retried. `differences` is what this server refuses.
    """

    address: Address
    error: type[KickError] = ModelError
    timeout: float = 120.0
    attempts: int = 5
    concurrency: int = 8
    api_key_env: str | None = None
    any_name: bool = False
    text_needed: bool = False
    differences: Differences = field(default_factory=Differences, repr=False, compare=False)

    @cached_property
    def client(self) -> openai.OpenAI:
        """The openai library's client; its own retries are off, because `_retrying` retries."""
        return self._credentials.client(self.address.url, self.timeout)

    @cached_property
    def _credentials(self) -> Credentials:
        return read_credentials(self.address.url, key_variable=self.api_key_env, error=self.error)

    def chat(self, *, cancelled: threading.Event | None = None, **request: Any) -> ChatCompletion:
        """A request to /chat/completions, retried until `cancelled` is set, and without what the server refuses.

        Raises RefusedError when the server refuses it, `error` when it fails permanently.
        """
        reply: ChatCompletion = self._adapted(self.client.chat.completions.create, request, cancelled)
        return reply

    def complete(self, *, cancelled: threading.Event | None = None, **request: Any) -> Completion:
        """A request to /completions; otherwise as `chat`."""
        reply: Completion = self._adapted(self.client.completions.create, request, cancelled)
        return reply

    def _adapted(
        self, create: Callable[..., Any], request: Mapping[str, Any], cancelled: threading.Event | None
    ) -> Any:
        """Send a request; again without what the server refuses in it, which is remembered where that helps."""
        changes: list[Change] = []
        while True:
            sent = self.differences.applied(request, changes)
            try:
                reply = self._send(create, sent, cancelled)
            except RefusedError as refusal:
                change = change_for(refusal.__cause__, sent)
                if change is None or change in changes:
                    raise
                changes.append(change)
            else:
                self.differences.remember(changes)
                return reply

    def listed(self) -> list[dict[str, Any]] | None:
        """The entries of /models, each with its name as `id`; None where the server has no such list."""
        return model_entries(self.read("/models"))

    def read(self, place: str) -> Any:
        """The JSON at a path below the address, or at a whole URL; None where the server has none there."""
        ask = partial(self.client.get, place, cast_to=object)
        try:
            return clean_value(self._retrying(ask, check=plain_body))
        except MalformedReplyError:
            return None
        except openai.OpenAIError as failure:
            if getattr(failure, "status_code", None) in NOT_SUPPORTED:
                return None  # transformers serve breaks (500) where it has no hub cache to list
            raise self._translated(failure) from failure

    def check(self) -> dict[str, Any]:
        """Check address, key and name of the model; returns its entry in /models, {} when there is none.

        Raises `error` when the server cannot be reached, refuses the key, or does not have the model. A server that
        lists other names and answers to a name that cannot exist ignores the name of a request, and is refused.
        """
        listed = self.listed()
        names = [str(entry.get("id")) for entry in listed or []]
        if self.address.name in names:
            return listed[names.index(self.address.name)] if listed else {}
        if names and self._answers_to_anything():
            raise self.error(
                f"{self.address.url} does not serve {self.address.name!r}: it lists {', '.join(names[:10])}, "
                "and answers to any name; give one that it lists"
            )
        return {}

    def _answers_to_anything(self) -> bool:
        request: dict[str, Any] = {"messages": [GREETING], "max_tokens": 1}
        try:
            self._retrying(lambda: self.client.chat.completions.create(model=NO_SUCH_MODEL, **request), attempts=1)
        except (openai.APIStatusError, ErrorInReplyError):
            return False
        except (openai.OpenAIError, MalformedReplyError) as failure:
            raise self._translated(failure) from failure
        return True

    def attempt(self, ask: Callable[..., Reply], **request: Any) -> Reply | None:
        """`ask`, with retries; None when the server does not support the request. Other failures are raised."""
        try:
            return ask(**request)
        except RefusedError:
            return None
        except KickError as failure:
            status = getattr(failure.__cause__, "status_code", None)
            if status in NOT_SUPPORTED or isinstance(failure.__cause__, MalformedReplyError):
                return None
            raise

    def ask_all(self, ask: Callable[..., Reply], requests: Sequence[Mapping[str, Any]]) -> list[Reply | Refused]:
        """`ask` (chat or complete) each request, `concurrency` at a time; replies in the order of `requests`.

        The first failure other than a refusal cancels the remaining requests and is raised. A request that gets status
        500 each time counts as refused while others are answered: others of `requests`, or else a tiny one.
        """
        cancelled = threading.Event()
        pool = DaemonThreads(self.concurrency)
        try:
            futures = [pool.submit(_ask, ask, {**request, "cancelled": cancelled}) for request in requests]
            for done in wait(futures, return_when=FIRST_EXCEPTION).done:
                done.result()
            outcomes = [future.result() for future in futures]
            broken = next((outcome for outcome in outcomes if isinstance(outcome, BrokenError)), None)
            nobody = all(isinstance(outcome, RefusedError) for outcome in outcomes)
            if broken is not None and nobody and not broken.is_its_own_fault():
                raise self.error(str(broken))
        finally:  # after an error, or Ctrl-C, do not wait for requests in flight
            cancelled.set()
            pool.shutdown()
        return [Refused(str(outcome)) if isinstance(outcome, Exception) else outcome for outcome in outcomes]

    def _send(self, create: Callable[..., Any], request: Mapping[str, Any], cancelled: threading.Event | None) -> Any:
        try:
            reply = self._retrying(partial(create, model=self.address.name, **request), cancelled=cancelled)
        except (openai.OpenAIError, ErrorInReplyError, MalformedReplyError) as failure:
            status = getattr(failure, "status_code", None)
            if status in REFUSALS:
                raise RefusedError(f"the server refused it: {self._said(failure)}") from failure
            if status == BROKEN:
                send_tiny = partial(self._send, create, tiny_request(request), cancelled)
                raise BrokenError(str(self._translated(failure)), send_tiny) from failure
            raise self._translated(failure) from failure
        except UnicodeEncodeError as failure:
            raise RefusedError(f"its text cannot be sent: {failure}") from failure
        if not self.any_name:
            self._refuse_other_model(reply)
        return reply

    def _refuse_other_model(self, reply: Any) -> None:
        answered = getattr(reply, "model", None)
        name = self.address.name
        if not answered or (answered.startswith(name) and SAME_MODEL.fullmatch(answered.removeprefix(name))):
            return
        raise self.error(
            f"{self.address.url} was asked for {name!r} and answers as {answered!r}: its answers are thrown away; "
            "give the name that it answers with, or see what is behind the address"
        )

    def _retrying(
        self,
        call: Callable[[], Any],
        *,
        check: Callable[[Any], Any] | None = None,
        cancelled: threading.Event | None = None,
        attempts: int | None = None,
    ) -> Any:
        """The reply of a call as `check` returns it, by default complete; retried after transient failures."""
        cancelled = cancelled or threading.Event()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(attempts or self.attempts), tenacity.stop_when_event_set(cancelled)
            ),
            wait=retry_wait,
            sleep=tenacity.sleep_using_event(cancelled),
            reraise=True,
        )
        return retrying(checked_reply, call, check or partial(complete_reply, text_needed=self.text_needed))

    def _said(self, failure: Exception) -> str:
        """The server's message on one line, without the credentials."""
        if target := redirect_target(failure):
            return self._line(target)
        body = getattr(failure, "body", None)
        text = body.get("message") or body.get("detail") if isinstance(body, dict) else None
        return self._line(text or error_text(failure)) or type(failure).__name__

    def _line(self, text: object) -> str:
        whole = " ".join(clean_text(str(text)).split())
        # Hide the credentials before cutting the line, or a part of them could remain.
        return self._credentials.hidden(whole)[:300]

    def _translated(self, failure: Exception) -> KickError:
        """The failure as an `error` that says what happened and what to do."""
        tried = f" ({self.attempts} attempts)" if is_transient(failure) else ""
        key = self.api_key_env or f"{KEY_VARIABLE} (or {COMMON_KEY_VARIABLE}, over https or on this machine)"
        said = self._line(failure.__cause__ or failure) if is_connection(failure) else self._said(failure)
        return self.error(
            explanation(failure, self.address, said=said, tried=tried, timeout=self.timeout, key_variable=key)
        )


def _ask(ask: Callable[..., Reply], request: Mapping[str, Any]) -> Reply | RefusedError:
    try:
        return ask(**request)
    except RefusedError as refusal:
        return refusal
