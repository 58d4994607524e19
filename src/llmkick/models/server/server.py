"""A model behind an OpenAI-compatible server (vLLM, llama.cpp, SGLang, TGI, transformers serve, …).

Every server generates text. Options are chosen by log-probabilities where the server gives them, otherwise by the
letter that it generates; the scores say which. `models.server.endpoint` sends requests, retries them and checks the
replies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkick.errors import ConfigError
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelDefaults,
    ModelInfo,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.server.address import parse_address
from llmkick.models.server.capabilities import CHAT_TOKENS, ECHO, GREEDY, TEXT_TOKENS, Capabilities, probe_capabilities
from llmkick.models.server.context_length import context_length
from llmkick.models.server.endpoint import Endpoint
from llmkick.models.server.log_probabilities import echoed_score
from llmkick.models.server.outcomes import generation_of, letters_by, letters_of, stopped_early
from llmkick.models.server.refusals import Refused
from llmkick.models.server.replies import new_tokens, unchanging_facts, whole_number
from llmkick.models.server.settings import ServerSettings
from llmkick.models.thoughts import THOUGHT_TOKENS, Thinking

# English text has more bytes a token; used only to see whether a prompt may fit.
BYTES_A_TOKEN = 3
# Room to name a letter: "The answer is **B**".
LETTER_TOKENS = 8
# The most stop strings that the interface takes; the answer is cut at the others afterwards.
MOST_STOPS = 4


@dataclass(frozen=True, kw_only=True)
class ServerModel(ModelDefaults):
    """A LanguageModel behind an endpoint. Its digest covers the server's description of itself, not the weights."""

    endpoint: Endpoint
    info: ModelInfo
    capabilities: Capabilities
    max_tokens: int
    thinking: Thinking = "off"

    @property
    def has_chat_template(self) -> bool:
        """Whether the server takes conversations."""
        return self.capabilities.chat

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for readers of this model's answers."""
        name = self.info.name
        return (
            f"{name} was asked at {self.endpoint.address.url}: its weights, precision and decoding are the "
            "server's and cannot be verified; an answer may change with what else the server does",
            *(f"{name}: {line}" for line in (*self._thinking_notes, *self.endpoint.differences.notes)),
        )

    @property
    def _thinking_notes(self) -> tuple[str, ...]:
        can = self.capabilities
        if self.thinking == "on" and not can.thinks:
            return ("thinking is on, but no reply to the probe shows a thought",)
        if can.switch is not None:
            return (f"thinking is {self.thinking} (its chat template gets {can.switch[0]} = {can.switch[1]})",)
        return ("it thinks although thinking is off; thoughts are not scored",) if can.thinks else ()

    def tokenize(self, text: str) -> list[int]:
        """Zeros, one per estimated token: the server's tokenizer is not available here. Sends no request."""
        return [0] * math.ceil(len(text.encode()) / BYTES_A_TOKEN)

    @property
    def answers_all_requests(self) -> bool:
        """False: the requests that a server answers depend on its capabilities."""
        return False

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Why this server cannot answer such requests, and what to do; empty when it can."""
        grouped = _by_prompt([request for request in requests if isinstance(request, ScoreRequest)])
        reasons = [self._refuses_prompt(request.prompt) for request in requests]
        reasons += [self._refuses_scoring(prompt, list(texts)) for prompt, texts in grouped.items()]
        return next((reason for reason in reasons if reason), "")

    def _refuses_prompt(self, prompt: Prompt) -> str:
        url = self.endpoint.address.url
        if isinstance(prompt, str):
            return (
                "" if self.capabilities.text else f'{url} takes no raw text: use prompting = "chat" (--prompting chat)'
            )
        if prompt[-1].role == "assistant":
            return f"{url} cannot continue an answer that has been begun"
        return (
            "" if self.capabilities.chat else f'{url} takes no conversations: use prompting = "raw" (--prompting raw)'
        )

    def _refuses_scoring(self, prompt: Prompt, continuations: Sequence[str | tuple[int, ...]]) -> str:
        url = self.endpoint.address.url
        texts = [text for text in continuations if isinstance(text, str)]
        if len(texts) < len(continuations) or not prompt:
            return f"{url} gives no log-probabilities of running text in the model's own tokens; leave perplexity out"
        if letters_of(texts) or (self.capabilities.echo and isinstance(prompt, str)):
            return ""
        how = (
            'it does for raw text: use prompting = "raw" (--prompting raw)'
            if self.capabilities.echo
            else "ask for letters (multiple_choice:letter) instead of cloze"
        )
        return f"{url} gives no log-probabilities of a text it is given; {how}"

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One greedy generation for each request, in order."""
        limits = [self._limit(request.prompt, request.max_new_tokens) for request in requests]
        asked = [
            (request.prompt, {"max_tokens": limit, **_stops_of(request)})
            for request, limit in zip(requests, limits, strict=True)
        ]
        replies = self._ask(asked)
        # A server may have stopped at a line break at the start of an answer, or inside a thought.
        again = [
            index
            for index, (request, reply) in enumerate(zip(requests, replies, strict=True))
            if request.stops and not isinstance(reply, Refused) and stopped_early(reply)
        ]
        without = [(requests[index].prompt, {"max_tokens": limits[index]}) for index in again]
        for index, reply in zip(again, self._ask(without), strict=True):
            replies[index] = reply
        return [
            Unanswered(reason=reply.reason)
            if isinstance(reply, Refused)
            else generation_of(reply, request.stops, limit=limit, thinking=self.thinking)
            for request, limit, reply in zip(requests, limits, replies, strict=True)
        ]

    def _limit(self, prompt: Prompt, new_tokens: int) -> int:
        """The most new tokens of an answer, with room for a thought where the model is to think."""
        if self.thinking == "off" or not self.capabilities.thinks or isinstance(prompt, str):
            return new_tokens
        room = self.max_tokens - self.prompt_tokens(prompt) - new_tokens
        return new_tokens + max(0, min(THOUGHT_TOKENS, room))

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order; its `method` says how it was computed.

        Raises ConfigError for refused requests.
        """
        reason = self.refusal(requests)
        if reason:
            raise ConfigError(reason)
        scores: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        chosen = {prompt: texts for prompt, texts in _by_prompt(requests).items() if not self._echoes(prompt)}
        scores.update(self._choose([(prompt, [str(text) for text in texts]) for prompt, texts in chosen.items()]))
        scores.update(self._echo([request for request in requests if request not in scores]))
        return [scores[request] for request in requests]

    def _echoes(self, prompt: Prompt) -> bool:
        return self.capabilities.echo and isinstance(prompt, str)

    def _echo(self, requests: Sequence[ScoreRequest]) -> dict[ScoreRequest, ContinuationScore | Unanswered]:
        texts = [(f"{request.prompt}{request.continuation}", {**ECHO}) for request in requests]
        scores: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        for request, reply in zip(requests, self._ask(texts), strict=True):
            scores[request] = (
                Unanswered(reason=reply.reason)
                if isinstance(reply, Refused)
                else echoed_score(
                    reply.choices[0], str(request.prompt), str(request.continuation), generated=new_tokens(reply)
                )
            )
        return scores

    def _choose(
        self, questions: Sequence[tuple[Prompt, list[str]]]
    ) -> dict[ScoreRequest, ContinuationScore | Unanswered]:
        """Letters by the likeliest first tokens, or by the letter that is generated."""
        asked = [(prompt, self._letter_options(prompt)) for prompt, _ in questions]
        scores: dict[ScoreRequest, ContinuationScore | Unanswered] = {}
        for (prompt, texts), reply in zip(questions, self._ask(asked), strict=True):
            letters: Sequence[ContinuationScore | Unanswered]
            if isinstance(reply, Refused):
                letters = [Unanswered(reason=reply.reason)] * len(texts)
            else:
                by_token = self._gives_tokens(prompt)
                limit = self._limit(prompt, LETTER_TOKENS)
                letters = letters_by(reply, texts, by_token=by_token, limit=limit, thinking=self.thinking)
            scores |= {ScoreRequest(prompt, text): score for text, score in zip(texts, letters, strict=True)}
        return scores

    def _gives_tokens(self, prompt: Prompt) -> bool:
        return self.capabilities.text_tokens if isinstance(prompt, str) else self.capabilities.chat_tokens

    def _letter_options(self, prompt: Prompt) -> dict[str, Any]:
        if not self._gives_tokens(prompt):
            return {"max_tokens": self._limit(prompt, LETTER_TOKENS)}
        return {"max_tokens": 1, **(TEXT_TOKENS if isinstance(prompt, str) else CHAT_TOKENS)}

    def _ask(self, asked: Sequence[tuple[Prompt, Mapping[str, Any]]]) -> list[Any]:
        """Replies or refusals, in order; raw text goes to /completions, a conversation to /chat/completions."""
        return self.endpoint.ask_all(self._send, [{"prompt": prompt, "options": options} for prompt, options in asked])

    def _send(self, *, prompt: Prompt, options: Mapping[str, Any], cancelled: Any = None) -> Any:
        if isinstance(prompt, str):
            options = {**GREEDY, **self.capabilities.extras, **options}
            return self.endpoint.complete(cancelled=cancelled, prompt=prompt, **options)
        options = {**GREEDY, **self.capabilities.chat_extras, **options}
        return self.endpoint.chat(cancelled=cancelled, messages=[message._asdict() for message in prompt], **options)


def connect(reference: str, settings: ServerSettings | None = None) -> ServerModel:
    """The model behind `openai:URL#name`, after a few tiny requests that show what the server can do.

    ConfigError for a malformed reference; ModelError for a server that cannot be reached, refuses the key or does
    not have the model.
    """
    settings = settings or ServerSettings()
    address = parse_address(reference)
    endpoint = Endpoint(address, timeout=settings.timeout, attempts=settings.attempts, concurrency=settings.concurrency)
    entry = endpoint.check()
    capabilities = probe_capabilities(endpoint, settings.thinking)
    meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
    facts = {**(meta or {}), **entry}
    identity = {"url": address.url, "name": address.name, "listed": unchanging_facts(entry)}
    if settings.thinking == "on" or capabilities.switch is not None:
        identity["thinking"] = settings.thinking
    info = ModelInfo(
        name=address.name,
        revision=address.url,
        digest=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        architecture="server",
        parameters=whole_number(facts, "n_params") or 0,
        dtype="server",
        source_precision="unknown",
    )
    tokens = context_length(endpoint, facts)
    return ServerModel(
        endpoint=endpoint, info=info, capabilities=capabilities, max_tokens=tokens, thinking=settings.thinking
    )


def _by_prompt(requests: Sequence[ScoreRequest]) -> dict[Prompt, list[str | tuple[int, ...]]]:
    grouped: dict[Prompt, list[str | tuple[int, ...]]] = {}
    for request in requests:
        grouped.setdefault(request.prompt, []).append(request.continuation)
    return grouped


def _stops_of(request: GenerateRequest) -> dict[str, Any]:
    return {"stop": list(request.stops[:MOST_STOPS])} if request.stops else {}
