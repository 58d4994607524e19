"""A judge that can be asked: an OpenAI-compatible endpoint, or a local model.

The `openai` client speaks, `tenacity` tries again. The key comes from the environment and goes nowhere else.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

from llmkick.errors import ConfigError, JudgeError, KickError
from llmkick.models.checkpoint import locate
from llmkick.models.language_model import (
    GenerateRequest,
    Generation,
    LanguageModel,
    Message,
    Unanswered,
    load_model,
)

PREFIX = "openai:"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
# So many requests in a row that failed for good mean that the judge is gone: to go on asking would only cost time.
MOST_FAILURES = 5
# Seconds between two tries of a request, at most.
LONGEST_WAIT = 60.0
# A local judge is asked so many questions at a time.
LOCAL_BATCH = 8
# What the paper's prompts were run with (FastChat's settings); a strict judge is as deterministic as it can be.
PAPER_TEMPERATURE = 0.2
_PROBE = (Message("user", "Reply with the word: ready"),)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to ask a judge; `key` is the caller's. `schema` is the JSON that the reply should be."""

    key: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge wrote, whether it was cut by its length, and the tokens that were used."""

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class NoReply:
    """A question without a reply, and why. It was not answered, so it may be asked again another time."""

    reason: str


# Replies by the key of their question.
Replies = Iterator[tuple[str, Reply | NoReply]]
OVER_BUDGET = "not asked: the budget is spent"


class Judge(Protocol):
    """Whoever can be asked for judgements."""

    @property
    def identity(self) -> str:
        """What tells it from other judges. Raises JudgeError where it cannot be found."""
        ...

    def check(self) -> None:
        """Raise JudgeError when it cannot be asked: no key, wrong address, unknown model."""
        ...

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """Replies to all questions but the `known`, by key, in any order, each as soon as it is there.

        None is begun once `afford` says no.
        """
        ...


@dataclass(frozen=True)
class Address:
    """An endpoint's base URL and the name of the model there."""

    url: str
    model: str


def parse_address(reference: str) -> Address | None:
    """`openai:URL#MODEL` → where to ask; None for a local model. Raises ConfigError for a damaged address."""
    if not reference.startswith(PREFIX):
        return None
    url, _, model = reference.removeprefix(PREFIX).partition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not model.strip():
        raise ConfigError(
            f"judge model {reference!r}: an endpoint is written openai:URL#MODEL, "
            "for example openai:https://api.openai.com/v1#gpt-4o"
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError("judge model: the address must hold no key; a key comes from the environment alone")
    return Address(url=url.rstrip("/"), model=model)


@dataclass(kw_only=True)
class EndpointJudge:
    """An OpenAI-compatible chat endpoint.

    `timeout` is seconds a request, `attempts` how often one is tried; between them the wait doubles, or is what the
    server asks for, up to `longest_wait` seconds.
    """

    address: Address
    api_key_env: str = DEFAULT_KEY_ENV
    temperature: float | None = 0.0
    max_tokens: int = 1024
    concurrency: int = 4
    timeout: float = 120.0
    attempts: int = 6
    longest_wait: float = field(default_factory=lambda: LONGEST_WAIT)
    # Parameters that the endpoint turned out not to know; found when it is first asked.
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._made: Any = None

    @property
    def identity(self) -> str:
        """Its address and name: what stands behind them is the endpoint's affair."""
        return f"{PREFIX}{self.address.url}#{self.address.model}"

    @property
    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise JudgeError(
                f"the judge at {self.address.url} needs a key: set the environment variable {self.api_key_env} "
                "(to any text for a server that wants none)"
            )
        return key

    def check(self) -> None:
        """One tiny request: it shows that address, key and model are right."""
        _ = self._key
        try:
            self._complete(Question(key="", messages=_PROBE, schema=None), max_tokens=16)
        except Exception as error:
            raise JudgeError(self._explained(error)) from error

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """As many at a time as `concurrency` allows; after failures in a row, or one that nothing mends, no more."""
        waiting = [question for question in reversed(questions) if question.key not in known]
        running: dict[Future[Reply], str] = {}
        failures, stopped = 0, ""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            while waiting or running:
                while waiting and not stopped and len(running) < self.concurrency and afford():
                    question = waiting.pop()
                    running[pool.submit(self._complete, question)] = question.key
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key, error = running.pop(future), future.exception()
                    if error is None:
                        failures = 0
                        yield key, future.result()
                        continue
                    if not isinstance(error, Exception):
                        raise error
                    failures += _may_pass(error)
                    reason = self._explained(error)
                    if failures >= MOST_FAILURES or _is_hopeless(error):
                        stopped = reason
                    yield key, NoReply(reason=reason)
        for question in reversed(waiting):
            yield question.key, NoReply(reason=f"not asked: {stopped}" if stopped else OVER_BUDGET)

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                from openai import OpenAI

                # Trying again is tenacity's: one policy, and one that a test can see.
                self._made = OpenAI(base_url=self.address.url, api_key=self._key, max_retries=0, timeout=self.timeout)
            return self._made

    def _complete(self, question: Question, max_tokens: int | None = None) -> Reply:
        """One reply, tried again while that can help."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            retry=retry_if_exception(_may_pass),
            wait=self._wait,
            reraise=True,
        )
        reply: Reply = retrying(self._once, question, max_tokens or self.max_tokens)
        return reply

    def _wait(self, state: Any) -> float:
        from tenacity import wait_random_exponential

        asked = _retry_after(state.outcome.exception())
        own = float(wait_random_exponential(multiplier=1, max=self.longest_wait)(state))
        return own if asked is None else min(asked, self.longest_wait)

    def _once(self, question: Question, max_tokens: int) -> Reply:
        """One request; parameters that the endpoint refuses are left out from then on."""
        from openai import BadRequestError, UnprocessableEntityError

        while True:
            given = self._parameters(question, max_tokens)
            try:
                return _reply_of(self._client().chat.completions.create(**given))
            except (BadRequestError, UnprocessableEntityError) as error:
                refused = next((name for name in _OPTIONAL if name in given and name in str(error)), None)
                if refused is None:
                    raise
                with self._lock:
                    self.refused.add(refused)

    def _parameters(self, question: Question, max_tokens: int) -> dict[str, Any]:
        wanted: dict[str, Any] = {"temperature": self.temperature, "seed": question.seed, "max_tokens": max_tokens}
        if question.schema is not None:
            wanted["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "judgement", "strict": True, "schema": question.schema},
            }
        with self._lock:
            given = {name: value for name, value in wanted.items() if value is not None and name not in self.refused}
            if "max_tokens" in self.refused:  # newer models of OpenAI's call it so
                given["max_completion_tokens"] = max_tokens
        messages = [message._asdict() for message in question.messages]
        return {"model": self.address.model, "messages": messages, **given}

    def _explained(self, error: Exception) -> str:
        """What went wrong in a line, and never the key."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        said = " ".join(str(error).split())[:300]
        where = f"the judge {self.address.model} at {self.address.url}"
        if isinstance(error, JudgeError):
            text = str(error)
        elif isinstance(error, APITimeoutError):
            text = f"{where} did not answer within {self.timeout:g} s, {self.attempts} times"
        elif isinstance(error, APIConnectionError):
            text = f"{where} cannot be reached ({said}): check the address"
        elif isinstance(error, APIStatusError) and error.status_code in (401, 403):
            text = f"{where} refuses the key in {self.api_key_env} (HTTP {error.status_code}): {said}"
        elif isinstance(error, APIStatusError) and error.status_code == 404:
            text = f"{where} is not there (HTTP 404): check the address and the model's name: {said}"
        elif isinstance(error, APIStatusError):
            text = f"{where} answered HTTP {error.status_code}: {said}"
        else:
            text = f"{where} answered what is no answer ({type(error).__name__}): {said}"
        key = os.environ.get(self.api_key_env, "").strip()
        return text.replace(key, "…") if key else text


# An account without credit answers 429 as well, but waiting does not help.
_NO_MONEY = "insufficient_quota"
# In this order they are given up when an endpoint refuses a request and names one of them.
_OPTIONAL = ("response_format", "seed", "temperature", "max_tokens")


def _reply_of(response: Any) -> Reply:
    """A reply from what the endpoint sent. Raises ValueError for half an answer."""
    try:
        choice = response.choices[0]
        text = choice.message.content or getattr(choice.message, "refusal", None)
        finish = choice.finish_reason
    except (AttributeError, IndexError, TypeError) as error:
        raise _HalfAnswerError(f"the response has no choices[0].message: {str(response)[:200]!r}") from error
    if not isinstance(text, str):
        raise _HalfAnswerError(f"the response has no text: {str(response)[:200]!r}")
    usage = getattr(response, "usage", None)
    return Reply(
        text=text,
        cut=finish == "length",
        prompt_tokens=int(getattr(usage, "prompt_tokens", None) or 0),
        completion_tokens=int(getattr(usage, "completion_tokens", None) or 0),
    )


class _HalfAnswerError(ValueError):
    """A response that is not one."""


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: rate limits, time-outs, server errors, half answers."""
    from json import JSONDecodeError

    from openai import APIConnectionError, APIResponseValidationError, APIStatusError

    if isinstance(error, APIStatusError):
        retried = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
        return retried and error.code != _NO_MONEY
    return isinstance(error, APIConnectionError | APIResponseValidationError | _HalfAnswerError | JSONDecodeError)


def _is_hopeless(error: Exception) -> bool:
    """Whether every other request would fail too."""
    from openai import APIStatusError

    if isinstance(error, APIStatusError):
        return error.status_code in (401, 403, 404) or error.code == _NO_MONEY
    return isinstance(error, JudgeError)


def _retry_after(error: BaseException | None) -> float | None:
    """The seconds that a server asks to wait."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    stated = str(headers.get("retry-after", "")).strip()
    return float(stated) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stated) else None


@dataclass(kw_only=True)
class LocalJudge:
    """A model of this machine, loaded when it is first asked; it decodes greedily."""

    reference: str
    dtype: str = "auto"
    device: str = "auto"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        self._model: LanguageModel | None = None

    @cached_property
    def identity(self) -> str:
        """The digest of its files."""
        try:
            return locate(self.reference).digest
        except KickError as error:
            raise JudgeError(f"the judge {self.reference} cannot be used: {error}") from error

    def check(self) -> None:
        """Find its files. Raises JudgeError when there are none."""
        _ = self.identity

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """In batches that depend on the questions alone, not on what is known: as it answers, so it resumes."""
        for start in range(0, len(questions), LOCAL_BATCH):
            batch = questions[start : start + LOCAL_BATCH]
            new = [question.key for question in batch if question.key not in known]
            if not new:
                continue
            if not afford():
                yield from ((key, NoReply(reason=OVER_BUDGET)) for key in new)
                continue
            if self._model is None:
                self._model = load_model(self.reference, dtype=self.dtype, device=self.device)
            requests = [self._request(self._model, question) for question in batch]
            for question, request, answer in zip(batch, requests, self._model.generate(requests), strict=True):
                if question.key not in new:
                    continue
                if isinstance(answer, Unanswered):
                    yield question.key, NoReply(reason=answer.reason)
                else:
                    yield question.key, _local_reply(self._model, request, answer)

    def _request(self, model: LanguageModel, question: Question) -> GenerateRequest:
        if model.has_chat_template:
            return GenerateRequest(question.messages, max_new_tokens=self.max_tokens)
        text = "\n\n".join(message.content for message in question.messages)
        return GenerateRequest(text, max_new_tokens=self.max_tokens)


def _local_reply(model: LanguageModel, request: GenerateRequest, answer: Generation) -> Reply:
    from llmkick.tasks.fitting import prompt_tokens

    return Reply(
        text=answer.text,
        cut=answer.finish == "length",
        prompt_tokens=prompt_tokens(model, request.prompt),
        completion_tokens=answer.tokens,
    )
