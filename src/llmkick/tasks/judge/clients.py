"""A judge that can be asked: an OpenAI-compatible endpoint, or a local model.

`llmkick.models.server.endpoint` connects, sends the key and retries; this module adds what only a judge needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from llmkick.errors import JudgeError, KickError
from llmkick.models.checkpoints.checkpoint import locate
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import GenerateRequest, Generation, LanguageModel, Message, Unanswered

if TYPE_CHECKING:  # the client library takes a second
    from llmkick.models.server.address import Address
    from llmkick.models.server.endpoint import Endpoint

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
# So many requests in a row that failed for good mean that the judge is gone: to go on asking would only cost time.
MOST_FAILURES = 5
# A local judge is asked so many questions at a time.
LOCAL_BATCH = 8
# What the paper's prompts were run with (FastChat's settings); a strict judge is as deterministic as it can be.
PAPER_TEMPERATURE = 0.2
# In this order they are given up when an endpoint refuses a request and names one of them.
_OPTIONAL = ("response_format", "seed", "temperature", "max_tokens")
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


@dataclass(kw_only=True)
class EndpointJudge:
    """An OpenAI-compatible chat endpoint; `timeout` and `attempts` as for `models.server.endpoint.Endpoint`."""

    address: Address
    api_key_env: str = DEFAULT_KEY_ENV
    temperature: float | None = 0.0
    max_tokens: int = 1024
    concurrency: int = 4
    timeout: float = 120.0
    attempts: int = 6
    # Parameters that the endpoint turned out not to know; found when it is first asked.
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """Its address and name: what stands behind them is the endpoint's affair."""
        return str(self.address)

    @cached_property
    def _endpoint(self) -> Endpoint:
        from llmkick.models.server.endpoint import Endpoint

        return Endpoint(
            self.address,
            error=JudgeError,
            timeout=self.timeout,
            attempts=self.attempts,
            api_key_env=self.api_key_env,
            any_name=True,
            text_needed=True,
        )

    def check(self) -> None:
        """One tiny request: it shows that address, key and model are right."""
        try:
            self._complete(Question(key="", messages=_PROBE), max_tokens=16)
        except KickError as error:
            raise JudgeError(self._explained(error)) from error

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """As many at a time as `concurrency` allows; after failures in a row, or one that nothing mends, no more."""
        from llmkick.models.server.failures import is_permanent, is_transient

        waiting = [question for question in reversed(questions) if question.key not in known]
        running: dict[Future[Reply], str] = {}
        failures, stopped = 0, ""
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool, _set_at_the_end() as cancelled:
            while waiting or running:
                while waiting and not stopped and len(running) < self.concurrency and afford():
                    question = waiting.pop()
                    running[pool.submit(self._complete, question, cancelled=cancelled)] = question.key
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key, error = running.pop(future), future.exception()
                    if error is None:
                        failures = 0
                        yield key, future.result()
                        continue
                    if not isinstance(error, KickError):
                        raise error
                    failures += is_transient(error.__cause__)
                    reason = self._explained(error)
                    if failures >= MOST_FAILURES or is_permanent(error):
                        stopped = reason
                    yield key, NoReply(reason=reason)
        for question in reversed(waiting):
            yield question.key, NoReply(reason=f"not asked: {stopped}" if stopped else OVER_BUDGET)

    def _complete(
        self, question: Question, *, max_tokens: int | None = None, cancelled: threading.Event | None = None
    ) -> Reply:
        """One reply; parameters that the endpoint refuses are left out from then on."""
        from llmkick.models.server.endpoint import RefusedError
        from llmkick.models.server.failures import text_of

        while True:
            given = self._parameters(question, max_tokens or self.max_tokens)
            try:
                reply = self._endpoint.chat(cancelled=cancelled, **given)
            except RefusedError as error:
                said = str(error.__cause__)
                refused = next((name for name in _OPTIONAL if name in given and name in said), None)
                if refused is None:
                    raise
                with self._lock:
                    self.refused.add(refused)
            else:
                return Reply(
                    text=text_of(reply) or "",
                    cut=getattr(reply.choices[0], "finish_reason", None) == "length",
                    prompt_tokens=int(getattr(reply.usage, "prompt_tokens", None) or 0),
                    completion_tokens=int(getattr(reply.usage, "completion_tokens", None) or 0),
                )

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
        return {"messages": [message._asdict() for message in question.messages], **given}

    def _explained(self, error: KickError) -> str:
        return f"the judge {self.address.name}: {error}"


@contextmanager
def _set_at_the_end() -> Iterator[threading.Event]:
    """An event that is set when the block is left, by an error or Ctrl-C too: nobody tries again after that."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


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

    return Reply(
        text=answer.text,
        cut=answer.finish == "length",
        prompt_tokens=model.prompt_tokens(request.prompt),
        completion_tokens=answer.tokens,
    )
