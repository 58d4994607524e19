"""Clients for a judge: what any judge is, and an endpoint, which `models.server.endpoint` connects to and retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from llmkick.errors import JudgeError, KickError
from llmkick.models.language_model import Message
from llmkick.models.thoughts import THOUGHT_TOKENS

if TYPE_CHECKING:  # importing the client library takes a second
    from llmkick.models.server.address import Address
    from llmkick.models.server.endpoint import Endpoint

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
# After this many consecutive failed requests the judge counts as unavailable; further requests would only waste time.
MOST_FAILURES = 5
# Temperature for the paper's prompts (FastChat's setting). The strict protocol uses 0, the most deterministic value.
PAPER_TEMPERATURE = 0.2
_PROBE = (Message("user", "Reply with the word: ready"),)
_PROBE_TOKENS = 16
THINKS = f"it thinks before it replies: a reply may have {THOUGHT_TOKENS} tokens more for that"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question for a judge. The caller chooses `key`; `schema` is the JSON schema of the expected reply."""

    key: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The text of a judge's reply, whether the token limit truncated it, and the numbers of tokens used."""

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class NoReply:
    """The reason why a question has no reply. The question can be asked again later."""

    reason: str


# Pairs of question key and reply.
Replies = Iterator[tuple[str, Reply | NoReply]]
OVER_BUDGET = "not asked: the budget is spent"


class Judge(Protocol):
    """A source of judgements."""

    @property
    def identity(self) -> str:
        """A string that identifies the judge. Raises JudgeError if it cannot be determined."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What readers of the judgements have to know, for example that a parameter was refused."""
        ...

    def check(self) -> None:
        """Raise JudgeError if the judge cannot be used: no key, wrong address, unknown model."""
        ...

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """Yield (key, reply) for all questions whose key is not in `known`, in any order, as soon as a reply arrives.

        No new request starts after `afford` returns False.
        """
        ...


@dataclass(kw_only=True)
class EndpointJudge:
    """An OpenAI-compatible chat endpoint. For `timeout` and `attempts`, see `models.server.endpoint.Endpoint`."""

    address: Address
    api_key_env: str = DEFAULT_KEY_ENV
    temperature: float | None = 0.0
    max_tokens: int = 1024
    concurrency: int = 4
    timeout: float = 120.0
    attempts: int = 6
    # Whether a reply ended inside a thought: from then on, requests leave room for one.
    _thinks: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def identity(self) -> str:
        """The address and model name of the endpoint. The client cannot verify the weights behind them."""
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

    @property
    def notes(self) -> tuple[str, ...]:
        """What the endpoint refuses, and whether the judge thinks."""
        lines = self._endpoint.differences.notes
        if self._thinks.is_set():
            lines += (THINKS,)
        return tuple(f"the judge {self.address.name}: {line}" for line in lines)

    def check(self) -> None:
        """Send one small request, which shows that the address, the key and the model are valid.

        A reply that ends inside a thought shows as much. Whether the judge comes to an end is then asked with room.
        """
        probe = Question(key="", messages=_PROBE)
        try:
            reply = self._complete(probe, max_tokens=_PROBE_TOKENS)
        except KickError as error:
            raise JudgeError(self._explained(error)) from error
        if self._thinks.is_set() and not reply.text.strip():
            raise JudgeError(
                f"the judge {self.address.name} thinks for more than {self._limit(_PROBE_TOKENS)} tokens and gives no "
                "reply to a plain request; turn its thinking down at the server, or give another judge"
            )

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """Send up to `concurrency` requests at a time; stop after consecutive failures or one permanent failure."""
        from llmkick.models.server.daemon_threads import DaemonThreads
        from llmkick.models.server.failures import is_permanent, is_transient

        waiting = [question for question in reversed(questions) if question.key not in known]
        running: dict[Future[Reply], str] = {}
        failures, stopped = 0, ""
        with DaemonThreads(self.concurrency) as pool, _set_at_the_end() as cancelled:
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
        """The reply to one question. One that ends before its text, in a thought, is asked for again with more room."""
        limit, had_room = max_tokens or self.max_tokens, self._thinks.is_set()
        reply = self._send(question, limit, cancelled)
        if reply.text.strip() or not reply.cut or had_room:
            return reply
        self._thinks.set()
        again = self._send(question, limit, cancelled)
        return replace(
            again,
            prompt_tokens=reply.prompt_tokens + again.prompt_tokens,
            completion_tokens=reply.completion_tokens + again.completion_tokens,
        )

    def _send(self, question: Question, limit: int, cancelled: threading.Event | None) -> Reply:
        """The reply to one request; without text where the server says that the limit ended it before its text."""
        from llmkick.models.server.failures import is_limit_reached
        from llmkick.models.server.refusals import RefusedError
        from llmkick.models.server.replies import final_text, used_tokens

        sampling = {} if self.temperature is None else {"temperature": self.temperature}
        parameters: dict[str, Any] = {"seed": question.seed, "max_tokens": self._limit(limit), **sampling}
        if question.schema is not None:
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "judgement", "strict": True, "schema": question.schema},
            }
        parameters["messages"] = [message._asdict() for message in question.messages]
        try:
            reply = self._endpoint.chat(cancelled=cancelled, **parameters)
        except RefusedError as error:
            if is_limit_reached(error.__cause__):
                return Reply(text="", cut=True, prompt_tokens=0, completion_tokens=0)
            raise
        final, (prompt_tokens, completion_tokens) = final_text(reply), used_tokens(reply)
        return Reply(text=final.text, cut=final.cut, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def _limit(self, limit: int) -> int:
        return limit + THOUGHT_TOKENS if self._thinks.is_set() else limit

    def _explained(self, error: KickError) -> str:
        return f"the judge {self.address.name}: {error}"


@contextmanager
def _set_at_the_end() -> Iterator[threading.Event]:
    """An event that is set when the block exits, also by an error or Ctrl-C, so that running requests stop retrying."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()
