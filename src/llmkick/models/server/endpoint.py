"""An OpenAI-compatible endpoint: its client, its key, what is tried again, and what its errors mean.

Whoever asks a server builds on this, servers as models (`models.server`) and judges alike:

    endpoint = Endpoint(parse_address("openai:http://127.0.0.1:8000/v1#name"), error=JudgeError)
    endpoint.check()                        # before any work: address, key and name, or the error says which
    answers = endpoint.ask_all(endpoint.chat, [{"messages": [...], "max_tokens": 32}, ...])

`chat` and `complete` send one request, with retries, and return the openai library's own types; `ask_all` keeps
several under way and returns, in order, a reply or a `Refused` (what the server said about that request alone).
Everything else ends in `error`, the kind of KickError that the caller names. Keys come from the environment only.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import openai
import tenacity
from openai.types import Completion
from openai.types.chat import ChatCompletion

from llmkick.errors import KickError, ModelError
from llmkick.models.server.address import COMMON_KEY_VARIABLE, KEY_VARIABLE, Address, is_private_connection
from llmkick.models.server.failures import (
    MalformedReplyError,
    complete_reply,
    is_out_of_credit,
    is_transient,
    retry_wait,
)

# A request's own fault: asking again gives the same, other requests may pass.
REFUSALS = {400, 413, 422}
# What a server says when it does not have an endpoint, or an option of one.
NOT_SUPPORTED = {404, 405, 500, 501}
# The server's own fault: perhaps with everything, perhaps with this request.
BROKEN = 500
# A revision or a date behind the name is the same model: "name@main", "name-2026-01-31".
SAME_MODEL = re.compile(r"(@.+|-\d{4}-\d{2}-\d{2})?")
# A name that no server has: one that answers to it answers to any.
NO_SUCH_MODEL = "llmkick-no-such-model"

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Refused:
    """A request that the server will not answer, however often it is asked, and why."""

    reason: str


class RefusedError(KickError):
    """`Refused`, where one request was sent alone."""


class _BrokenError(RefusedError):
    """A request on which the server breaks each time."""


@dataclass(frozen=True)
class Endpoint:
    """One model of one server. `timeout` is seconds a request, `attempts` how often one is tried.

    `concurrency` is how many requests are under way at once; `api_key_env` the variable that holds the key, by
    default LLMKICK_API_KEY, then OPENAI_API_KEY (sent only over https or within this machine). With `any_name`, what
    answers may go by another name, as a short name's newest version does; with `text_needed`, a chat's reply without
    text is half an answer, and tried again.
    """

    address: Address
    error: type[KickError] = ModelError
    timeout: float = 120.0
    attempts: int = 5
    concurrency: int = 8
    api_key_env: str | None = None
    any_name: bool = False
    text_needed: bool = False

    @cached_property
    def client(self) -> openai.OpenAI:
        """The openai library's client; its own retries are off, so that there is one policy."""
        return openai.OpenAI(
            base_url=self.address.url, api_key=self._key or "none", timeout=self.timeout, max_retries=0
        )

    @cached_property
    def _key(self) -> str:
        usual = [KEY_VARIABLE, *([COMMON_KEY_VARIABLE] if is_private_connection(self.address.url) else [])]
        for variable in usual if self.api_key_env is None else [self.api_key_env]:
            key = os.environ.get(variable, "").strip()
            # The libraries below would show it in their complaint.
            if not (key.isascii() and key.isprintable()):
                raise self.error(f"the variable {variable} holds no key: one is a line of ASCII characters")
            if key:
                return key
        if self.api_key_env is not None:
            raise self.error(
                f"{self.address.url} needs a key: set the environment variable {self.api_key_env} "
                "(to any text for a server that wants none)"
            )
        return ""

    def chat(self, *, cancelled: threading.Event | None = None, **request: Any) -> ChatCompletion:
        """One request to /chat/completions, tried again until `cancelled`.

        Raises RefusedError when the server will not answer it, `error` when it fails for good.
        """
        create = self.client.chat.completions.create
        reply: ChatCompletion = self._send(lambda: create(model=self.address.name, **request), cancelled)
        return reply

    def complete(self, *, cancelled: threading.Event | None = None, **request: Any) -> Completion:
        """One request to /completions; as `chat`."""
        create = self.client.completions.create
        reply: Completion = self._send(lambda: create(model=self.address.name, **request), cancelled)
        return reply

    def listed(self) -> list[dict[str, Any]] | None:
        """What /models says of each model; None where the server has no such list."""
        try:
            page = self._retrying(self.client.models.list)
        except MalformedReplyError:
            return None
        except openai.OpenAIError as failure:
            if getattr(failure, "status_code", None) in NOT_SUPPORTED:
                return None  # transformers serve breaks (500) where it has no hub cache to list
            raise self._translated(failure) from failure
        entries = page.data if isinstance(getattr(page, "data", None), list) else []
        return [entry.to_dict(mode="json") for entry in entries]

    def check(self) -> dict[str, Any]:
        """Reach the server, show it the key, find the model: what /models says of it, {} when it has no list.

        Raises `error` when the server cannot be reached, refuses the key, or does not have the model: one that
        lists other names, and answers to a name that cannot exist, does not know what it serves.
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
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        try:
            self._retrying(lambda: self.client.chat.completions.create(model=NO_SUCH_MODEL, **request), attempts=1)
        except openai.APIStatusError:
            return False
        except (openai.OpenAIError, MalformedReplyError) as failure:
            raise self._translated(failure) from failure
        return True

    def attempt(self, ask: Callable[..., Reply], **request: Any) -> Reply | None:
        """`ask` once or more; None when the server does not do such a thing. A refused key, or silence, is raised."""
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

        The first failure that is more than a refusal ends the others and is raised. A server that breaks on one
        request (status 500, each time) while it answers others has refused it.
        """
        cancelled = threading.Event()
        pool = ThreadPoolExecutor(max_workers=self.concurrency, thread_name_prefix="ask")
        try:
            waiting = [pool.submit(_ask, ask, {**request, "cancelled": cancelled}) for request in requests]
            for done in wait(waiting, return_when=FIRST_EXCEPTION).done:
                done.result()
            outcomes = [one.result() for one in waiting]
            broken = [outcome for outcome in outcomes if isinstance(outcome, _BrokenError)]
            if broken and len(broken) == len(outcomes):
                raise self.error(str(broken[0]))
        finally:  # after an error, or Ctrl-C, nobody waits for what is still under way
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return [Refused(str(one)) if isinstance(one, Exception) else one for one in outcomes]

    def _send(self, call: Callable[[], Any], cancelled: threading.Event | None) -> Any:
        try:
            reply = self._retrying(call, cancelled=cancelled)
        except (openai.OpenAIError, MalformedReplyError) as failure:
            status = getattr(failure, "status_code", None)
            if status in REFUSALS:
                raise RefusedError(f"the server refused it: {self._said(failure)}") from failure
            if status == BROKEN:
                raise _BrokenError(str(self._translated(failure))) from failure
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
        self, call: Callable[[], Any], *, cancelled: threading.Event | None = None, attempts: int | None = None
    ) -> Any:
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
        return retrying(complete_reply, call, text_needed=self.text_needed)

    def _said(self, failure: Exception) -> str:
        """What the server said, on one line, without the key."""
        body = getattr(failure, "body", None)
        text = body.get("message") or body.get("detail") if isinstance(body, dict) else None
        return self._line(text or failure) or type(failure).__name__

    def _line(self, text: object) -> str:
        whole = " ".join(str(text).split())
        # The key goes before anything is cut: half of it would stay.
        return (whole.replace(self._key, "***") if self._key else whole)[:300]

    def _translated(self, failure: Exception) -> KickError:
        """The failure as this project's error: what happened, and what to do."""
        url, name = self.address.url, self.address.name
        tried = f" ({self.attempts} attempts)" if is_transient(failure) else ""
        if isinstance(failure, openai.APITimeoutError):
            return self.error(
                f"{url} did not answer within {self.timeout:g} s{tried}: give it longer (timeout), "
                "or fewer requests at once (concurrency)"
            )
        if isinstance(failure, openai.APIConnectionError):
            reason = self._line(failure.__cause__ or failure)
            return self.error(f"cannot reach {url}{tried}: {reason}; is the server running, and the address right?")
        if isinstance(failure, openai.AuthenticationError | openai.PermissionDeniedError):
            wanted = self.api_key_env or f"{KEY_VARIABLE} (or {COMMON_KEY_VARIABLE}, over https or on this machine)"
            return self.error(f"{url} does not accept the key: {self._said(failure)}; set {wanted}")
        if isinstance(failure, openai.NotFoundError):
            return self.error(
                f"{url} knows no {name!r}, or has no such endpoint: {self._said(failure)}; "
                "most addresses end in /v1, and /v1/models lists the names"
            )
        if is_out_of_credit(failure):
            return self.error(f"{url} wants to be paid: {self._said(failure)}; add credit to the key's account")
        if isinstance(failure, openai.APIStatusError):
            return self.error(f"{url} fails with status {failure.status_code}{tried}: {self._said(failure)}")
        return self.error(f"{url} does not answer as an OpenAI-compatible server{tried}: {self._said(failure)}")


def _ask(ask: Callable[..., Reply], request: Mapping[str, Any]) -> Reply | RefusedError:
    try:
        return ask(**request)
    except RefusedError as refusal:
        return refusal
