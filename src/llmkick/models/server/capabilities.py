"""Detection of a server's capabilities by small requests: conversations, raw text, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkick.errors import ModelError
from llmkick.models.language_model import ContinuationScore
from llmkick.models.server.differences import TEMPLATE_OPTIONS
from llmkick.models.server.endpoint import Endpoint
from llmkick.models.server.log_probabilities import begins_likeliest, echoed_score, likeliest_first
from llmkick.models.server.refusals import RefusedError
from llmkick.models.server.replies import final_text, new_tokens
from llmkick.models.thoughts import Thinking, may_begin_thought

# Variables of chat templates that turn thoughts on and off, the most common first.
SWITCHES = ("enable_thinking", "thinking")
# Its continuation is certain, so that rounding cannot change it.
PROBE = "One, two, three, four,"
# The most alternatives to a token that servers commonly give.
TOP = 20
# Without a frequency penalty in the request, transformers serve applies the repetition penalty of the model's
# configuration.
GREEDY: Mapping[str, Any] = {"temperature": 0, "frequency_penalty": 0}
# Names of repetition penalties that some servers apply by default (llama-cpp-python 1.1; vLLM the one of the model's
# configuration). Local models have none, so the penalty is turned off where the server accepts the name.
PENALTIES = ("repeat_penalty", "repetition_penalty")
# How log-probabilities are asked for: of the first new token, and of a text that is given.
CHAT_TOKENS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": TOP}
TEXT_TOKENS: Mapping[str, Any] = {"logprobs": TOP}
# One new token, because some servers refuse to make none.
ECHO: Mapping[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1}


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a server did when it was probed.

    `chat`, `text`: it answers conversations, raw text. `echo`: it gives log-probabilities of a text in the request.
    `chat_tokens`, `text_tokens`: it gives those of the likeliest first tokens of its answer. Numbers that contradict
    the server's own answers do not count. `penalties`: names of penalties that can be turned off. `thinks`: its answers
    in conversations hold thoughts. `switch`: the variable of the chat template that turns them on or off, and its
    value.
    """

    chat: bool
    text: bool
    echo: bool = False
    chat_tokens: bool = False
    text_tokens: bool = False
    penalties: tuple[str, ...] = field(default=(), compare=False)
    thinks: bool = field(default=False, compare=False)
    switch: tuple[str, bool] | None = field(default=None, compare=False)

    @property
    def extras(self) -> dict[str, Any]:
        """Options that are sent beside the standard ones."""
        return {"extra_body": dict.fromkeys(self.penalties, 1.0)} if self.penalties else {}

    @property
    def chat_extras(self) -> dict[str, Any]:
        """`extras` of a conversation, with the switch of its chat template."""
        if self.switch is None:
            return self.extras
        return {"extra_body": {**self.extras.get("extra_body", {}), TEMPLATE_OPTIONS: dict([self.switch])}}


def probe_capabilities(endpoint: Endpoint, thinking: Thinking = "off") -> Capabilities:
    """Probe a server, whose model is to think or not.

    Raises ModelError when it answers neither conversations nor raw text.
    """
    # Some servers answer with status 500 to what they do not support: many retries would only take time.
    endpoint = replace(endpoint, attempts=min(2, endpoint.attempts))
    probe: dict[str, Any] = {"max_tokens": 1, **GREEDY}
    chat = partial(endpoint.chat, messages=[{"role": "user", "content": "Hello"}], **probe)
    complete = partial(endpoint.complete, prompt=PROBE, **probe)
    said = endpoint.attempt(chat)
    has_chat, has_text = said is not None, endpoint.attempt(complete) is not None
    if not (has_chat or has_text):
        try:
            chat()
        except RefusedError as refusal:
            raise ModelError(f"{endpoint.address} takes neither conversations nor raw text: {refusal}") from refusal
    penalties = _penalties_taken(endpoint, chat if has_chat else complete)
    basic = Capabilities(chat=has_chat, text=has_text, penalties=penalties, thinks=_thinks(said))
    if has_chat:
        basic = _with_switch(endpoint, basic, chat, thinking)
    extras = basic.extras
    chat_reply = endpoint.attempt(chat, **basic.chat_extras, **CHAT_TOKENS) if has_chat else None
    text_reply = endpoint.attempt(complete, **extras, **TEXT_TOKENS) if has_text else None
    return replace(
        basic,
        chat_tokens=not basic.thinks and _agrees(chat_reply),
        text_tokens=_agrees(text_reply),
        echo=has_text and _echoes_itself(endpoint, text_reply or endpoint.attempt(complete, **extras), extras),
    )


def _with_switch(endpoint: Endpoint, basic: Capabilities, chat: Callable[..., Any], thinking: Thinking) -> Capabilities:
    """`basic` with the switch that makes the model think as it should, where one shows an effect.

    A model that does not think by itself, and is not to, gets no switch: its requests stay the standard ones.
    """
    wanted = thinking == "on"
    if not (basic.thinks or wanted):
        return basic
    for name in SWITCHES:
        switched = replace(basic, thinks=wanted, switch=(name, wanted))
        reply = endpoint.attempt(chat, **switched.chat_extras)
        if reply is not None and _thinks(reply) == wanted:
            return switched
    return basic


def _thinks(reply: Any) -> bool:
    """Whether a reply of one token has begun a thought: it shows one, a part of its mark, or nothing of the token."""
    if reply is None:
        return False
    final = final_text(reply)
    return final.has_thought or may_begin_thought(final.raw) or (final.cut and not final.raw)


def _penalties_taken(endpoint: Endpoint, request: Callable[..., Any]) -> tuple[str, ...]:
    """Names of penalties that the server accepts in a request: all of them, or the first that it knows."""
    for names in (PENALTIES, *((name,) for name in PENALTIES)):
        if endpoint.attempt(request, extra_body=dict.fromkeys(names, 1.0)) is not None:
            return names
    return ()


def _agrees(reply: Any) -> bool:
    """Whether a reply names likeliest first tokens, and its own first token is the first of them."""
    return reply is not None and begins_likeliest(final_text(reply).raw, likeliest_first(reply))


def _echoes_itself(endpoint: Endpoint, text_reply: Any, extras: Mapping[str, Any]) -> bool:
    """Whether the token that the server wrote after the probe is its likeliest there in the echo too.

    llama-cpp-python 0.3.36 gives each token the log-probability it would have one place later.
    """
    token = final_text(text_reply).raw if text_reply is not None else ""
    if not token:
        return False
    reply = endpoint.attempt(endpoint.complete, prompt=PROBE + token, **GREEDY, **extras, **ECHO)
    if reply is None:
        return False
    score = echoed_score(reply.choices[0], PROBE, token, generated=new_tokens(reply))
    return isinstance(score, ContinuationScore) and score.is_greedy
