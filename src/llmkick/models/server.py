"""A model behind an OpenAI-compatible server (vLLM, llama.cpp, SGLang, TGI, transformers serve, …).

It generates always. Options are chosen by log-probabilities where the server gives them, else by the letter that
it generates; the answers say which. How a server is asked, tried again and disbelieved is in `models.endpoint`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkick.errors import ConfigError, ModelError
from llmkick.models.address import parse_address
from llmkick.models.checkpoint import is_server
from llmkick.models.endpoint import Endpoint, Refused, RefusedError
from llmkick.models.generation import first_stop
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    LanguageModel,
    ModelInfo,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.server_scores import (
    begins_likeliest,
    echoed_score,
    first_token_scores,
    generated_letter_scores,
    letters_of,
    likeliest_in_chat,
    likeliest_in_completion,
)
from llmkick.models.transformers_model import load_model

# Longest prompt plus answer where a server does not say it; what does not fit, it refuses.
ASSUMED_TOKENS = 4096
# English text has more bytes a token; used only to see whether a prompt may fit.
BYTES_A_TOKEN = 3
# What it continues is beyond doubt, so that rounding cannot change it.
PROBE = "One, two, three, four,"
# The most alternatives to a token that servers commonly give.
TOP = 20
# Room to name a letter: "The answer is **B**".
LETTER_TOKENS = 8
# Most stop strings that the interface takes; the others are cut here.
MOST_STOPS = 4
# What a server lists about a model that changes without the model changing.
PASSING_FACTS = {"created", "permission", "status"}
# transformers serve takes a repetition penalty of the model's own configuration unless it is told a frequency penalty.
GREEDY: Mapping[str, Any] = {"temperature": 0, "frequency_penalty": 0}
# What servers call a penalty on repetition that some apply unasked (llama-cpp-python 1.1, vLLM what the model's
# configuration says): models here have none, so it is turned off where the name is accepted.
PENALTIES = ("repeat_penalty", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server is asked: seconds a request, requests at once, how often one is tried."""

    timeout: float = 120.0
    concurrency: int = 8
    attempts: int = 5

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds; got {self.timeout:g}")
        for name, value in (("concurrency", self.concurrency), ("attempts", self.attempts)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a server was seen to do: conversations, raw text, and log-probabilities of either.

    `echo`: of a text it is given; `chat_tokens`, `text_tokens`: of the likeliest first tokens of its answer. Numbers
    that contradict the server's own answers do not count. `penalties`: names of penalties it lets be turned off.
    """

    chat: bool
    text: bool
    echo: bool = False
    chat_tokens: bool = False
    text_tokens: bool = False
    penalties: tuple[str, ...] = field(default=(), compare=False)

    @property
    def extras(self) -> dict[str, Any]:
        """What is sent beside the standard options."""
        return {"extra_body": dict.fromkeys(self.penalties, 1.0)} if self.penalties else {}


@dataclass(frozen=True, kw_only=True)
class ServerModel:
    """A LanguageModel behind an endpoint. Its weights cannot be seen: the digest is of what the server says."""

    endpoint: Endpoint
    info: ModelInfo
    abilities: Abilities
    max_tokens: int

    @property
    def has_chat_template(self) -> bool:
        """Whether the server takes conversations."""
        return self.abilities.chat

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this model's answers should know."""
        return (
            f"{self.info.name} was asked at {self.endpoint.address.url}: its weights, precision and decoding are the "
            "server's and cannot be verified; an answer may change with what else the server does",
        )

    def tokenize(self, text: str) -> list[int]:
        """As many zeros as the text may have tokens: the server's tokenizer is not here. Never asked of the server."""
        return [0] * math.ceil(len(text.encode()) / BYTES_A_TOKEN)

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Why this server cannot answer such requests, and what to do; empty when it can."""
        grouped = _by_prompt([request for request in requests if isinstance(request, ScoreRequest)])
        reasons = [self._refuses_prompt(request.prompt) for request in requests]
        reasons += [self._refuses_scoring(prompt, list(texts)) for prompt, texts in grouped.items()]
        return next((reason for reason in reasons if reason), "")

    def _refuses_prompt(self, prompt: Prompt) -> str:
        url = self.endpoint.address.url
        if isinstance(prompt, str):
            return "" if self.abilities.text else f'{url} takes no raw text: use prompting = "chat" (--prompting chat)'
        if prompt[-1].role == "assistant":
            return f"{url} cannot continue an answer that has been begun"
        return "" if self.abilities.chat else f'{url} takes no conversations: use prompting = "raw" (--prompting raw)'

    def _refuses_scoring(self, prompt: Prompt, continuations: Sequence[str | tuple[int, ...]]) -> str:
        url = self.endpoint.address.url
        texts = [text for text in continuations if isinstance(text, str)]
        if len(texts) < len(continuations) or not prompt:
            return f"{url} gives no log-probabilities of running text in the model's own tokens; leave perplexity out"
        if letters_of(texts) or (self.abilities.echo and isinstance(prompt, str)):
            return ""
        how = (
            'it does for raw text: use prompting = "raw" (--prompting raw)'
            if self.abilities.echo
            else "ask for letters (multiple_choice:letter) instead of cloze"
        )
        return f"{url} gives no log-probabilities of a text it is given; {how}"

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One greedy generation a request, in order."""
        replies = self._ask([(request.prompt, _generation_options(request)) for request in requests])
        # A server that stops at the line break an answer begins with has said nothing yet.
        again = [
            index
            for index, (request, reply) in enumerate(zip(requests, replies, strict=True))
            if request.stops and not isinstance(reply, Refused) and not (_text(reply) or "").strip()
            and reply.choices[0].finish_reason == "stop"
        ]  # fmt: skip
        without = [(requests[index].prompt, {"max_tokens": requests[index].max_new_tokens}) for index in again]
        for index, reply in zip(again, self._ask(without), strict=True):
            replies[index] = reply
        return [_generation(request, reply) for request, reply in zip(requests, replies, strict=True)]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score a request, in order; its `method` says how it came about. ConfigError for what has none."""
        reason = self.refusal(requests)
        if reason:
            raise ConfigError(reason)
        scores: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        chosen = {prompt: texts for prompt, texts in _by_prompt(requests).items() if not self._echoes(prompt)}
        scores.update(self._choose([(prompt, [str(text) for text in texts]) for prompt, texts in chosen.items()]))
        scores.update(self._echo([request for request in requests if request not in scores]))
        return [scores[request] for request in requests]

    def _echoes(self, prompt: Prompt) -> bool:
        return self.abilities.echo and isinstance(prompt, str)

    def _echo(self, requests: Sequence[ScoreRequest]) -> dict[ScoreRequest, ContinuationScore | Unanswered]:
        texts = [(f"{request.prompt}{request.continuation}", {**_ECHO}) for request in requests]
        found: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        for request, reply in zip(requests, self._ask(texts), strict=True):
            found[request] = (
                Unanswered(reason=reply.reason)
                if isinstance(reply, Refused)
                else echoed_score(
                    reply.choices[0], str(request.prompt), str(request.continuation), generated=_generated(reply)
                )
            )
        return found

    def _choose(
        self, questions: Sequence[tuple[Prompt, list[str]]]
    ) -> dict[ScoreRequest, ContinuationScore | Unanswered]:
        """Letters by the likeliest first tokens, or by the letter that is generated."""
        asked = [(prompt, self._letter_options(prompt)) for prompt, _ in questions]
        found: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        for (prompt, texts), reply in zip(questions, self._ask(asked), strict=True):
            scores: Sequence[ContinuationScore | Unanswered]
            if isinstance(reply, Refused):
                scores = [Unanswered(reason=reply.reason)] * len(texts)
            elif self._gives_tokens(prompt):
                likeliest = (likeliest_in_completion if isinstance(prompt, str) else likeliest_in_chat)(reply)
                scores = first_token_scores(likeliest, texts) if likeliest else [_NO_TOKENS] * len(texts)
            else:
                scores = generated_letter_scores(_text(reply) or "", letters_of(texts) or [])
            found |= {ScoreRequest(prompt, text): score for text, score in zip(texts, scores, strict=True)}
        return found

    def _gives_tokens(self, prompt: Prompt) -> bool:
        return self.abilities.text_tokens if isinstance(prompt, str) else self.abilities.chat_tokens

    def _letter_options(self, prompt: Prompt) -> dict[str, Any]:
        if not self._gives_tokens(prompt):
            return {"max_tokens": LETTER_TOKENS}
        return {"max_tokens": 1, **(_TEXT_TOKENS if isinstance(prompt, str) else _CHAT_TOKENS)}

    def _ask(self, asked: Sequence[tuple[Prompt, Mapping[str, Any]]]) -> list[Any]:
        """Replies or refusals, in order; a prompt decides which endpoint is asked."""
        return self.endpoint.ask_all(self._send, [{"prompt": prompt, "options": options} for prompt, options in asked])

    def _send(self, *, prompt: Prompt, options: Mapping[str, Any], given_up: Any = None) -> Any:
        options = {**GREEDY, **self.abilities.extras, **options}
        if isinstance(prompt, str):
            return self.endpoint.complete(given_up=given_up, prompt=prompt, **options)
        return self.endpoint.chat(given_up=given_up, messages=[message._asdict() for message in prompt], **options)


_CHAT_TOKENS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": TOP}
_TEXT_TOKENS: Mapping[str, Any] = {"logprobs": TOP}
# One new token, because some servers refuse to make none.
_ECHO: Mapping[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1}
_NO_TOKENS = Unanswered(reason="the server gave no log-probabilities this time")


def connect(reference: str, settings: ServerSettings = ServerSettings()) -> ServerModel:
    """The model behind `openai:URL#name`, after a few tiny requests that show what the server can do.

    ConfigError for a malformed reference; ModelError for a server that cannot be reached, refuses the key or does
    not have the model.
    """
    address = parse_address(reference)
    endpoint = Endpoint(address, timeout=settings.timeout, attempts=settings.attempts, concurrency=settings.concurrency)
    entry = endpoint.check()
    abilities = _abilities(endpoint)
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    facts = {**(meta or {}), **entry}
    identity = {"url": address.url, "name": address.name, "listed": _lasting(entry)}
    info = ModelInfo(
        name=address.name,
        revision=address.url,
        digest=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        architecture="server",
        parameters=_whole_number(facts, "n_params") or 0,
        dtype="server",
        source_precision="unknown",
    )
    tokens = _whole_number(facts, "max_model_len", "n_ctx", "context_length", "n_ctx_train") or ASSUMED_TOKENS
    return ServerModel(endpoint=endpoint, info=info, abilities=abilities, max_tokens=tokens)


def open_model(
    reference: str, *, dtype: str = "auto", device: str = "auto", server: ServerSettings = ServerSettings()
) -> LanguageModel:
    """A model that can be asked: loaded here as by `load_model`, or behind a server (`openai:URL#name`)."""
    return connect(reference, server) if is_server(reference) else load_model(reference, dtype=dtype, device=device)


def _abilities(endpoint: Endpoint) -> Abilities:
    """Seen by asking. Raises ModelError when the server answers neither conversations nor raw text."""
    endpoint = replace(endpoint, attempts=min(2, endpoint.attempts))  # some say "I cannot" with status 500
    one: dict[str, Any] = {"max_tokens": 1, **GREEDY}
    talk = partial(endpoint.chat, messages=[{"role": "user", "content": "Hello"}], **one)
    write = partial(endpoint.complete, prompt=PROBE, **one)
    can_talk, can_write = endpoint.attempt(talk) is not None, endpoint.attempt(write) is not None
    if not (can_talk or can_write):
        try:
            talk()
        except RefusedError as refusal:
            raise ModelError(f"{endpoint.address} takes neither conversations nor raw text: {refusal}") from refusal
    some = talk if can_talk else write
    offers = (PENALTIES, *((name,) for name in PENALTIES))
    penalties = next(
        (names for names in offers if endpoint.attempt(some, extra_body=dict.fromkeys(names, 1.0)) is not None), ()
    )
    found = Abilities(chat=can_talk, text=can_write, penalties=penalties)
    talked = endpoint.attempt(talk, **found.extras, **_CHAT_TOKENS) if can_talk else None
    written = endpoint.attempt(write, **found.extras, **_TEXT_TOKENS) if can_write else None
    return replace(
        found,
        chat_tokens=talked is not None and begins_likeliest(_text(talked), likeliest_in_chat(talked)),
        text_tokens=written is not None and begins_likeliest(_text(written), likeliest_in_completion(written)),
        echo=can_write and _echoes_itself(endpoint, written or endpoint.attempt(write, **found.extras), found.extras),
    )


def _echoes_itself(endpoint: Endpoint, written: Any, extras: Mapping[str, Any]) -> bool:
    """Whether the token that the server wrote after the probe is its likeliest there in the echo too.

    llama-cpp-python 0.3.36 gives each token the log-probability it would have one place later.
    """
    token = _text(written) if written is not None else None
    if not token:
        return False
    reply = endpoint.attempt(endpoint.complete, prompt=PROBE + token, **GREEDY, **extras, **_ECHO)
    if reply is None:
        return False
    score = echoed_score(reply.choices[0], PROBE, token, generated=_generated(reply))
    return isinstance(score, ContinuationScore) and score.is_greedy


def _by_prompt(requests: Sequence[ScoreRequest]) -> dict[Prompt, list[str | tuple[int, ...]]]:
    grouped: dict[Prompt, list[str | tuple[int, ...]]] = {}
    for request in requests:
        grouped.setdefault(request.prompt, []).append(request.continuation)
    return grouped


def _generation_options(request: GenerateRequest) -> dict[str, Any]:
    stops = {"stop": list(request.stops[:MOST_STOPS])} if request.stops else {}
    return {"max_tokens": request.max_new_tokens, **stops}


def _text(reply: Any) -> str | None:
    choice = reply.choices[0]
    message = getattr(choice, "message", None)
    text = choice.text if message is None else message.content
    return None if text is None else str(text)


def _generation(request: GenerateRequest, reply: Any) -> Generation | Unanswered:
    if isinstance(reply, Refused):
        return Unanswered(reason=reply.reason)
    text, reason = _text(reply), reply.choices[0].finish_reason
    if text is None and reason != "stop":
        return Unanswered(reason=f"the server's answer has no text (it ended with {reason!r})")
    text = text or ""
    end = first_stop(text, request.stops)
    finish = "stop" if end is not None else "length" if reason == "length" else "end"
    return Generation(text=text[:end], tokens=_generated(reply), finish=finish)


def _generated(reply: Any) -> int:
    """New tokens of a reply; 0 where the server does not count."""
    return int(getattr(getattr(reply, "usage", None), "completion_tokens", None) or 0)


def _lasting(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in PASSING_FACTS}


def _whole_number(facts: Mapping[str, Any], *names: str) -> int | None:
    values = (facts.get(name) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )
