"""What a server can do, seen by asking it: conversations, raw text, and log-probabilities of either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkick.errors import ModelError
from llmkick.models.language_model import ContinuationScore
from llmkick.models.server.endpoint import Endpoint, RefusedError
from llmkick.models.server.replies import (
    begins_likeliest,
    echoed_score,
    generated_text,
    likeliest_in_chat,
    likeliest_in_completion,
    new_tokens,
)

# What it continues is beyond doubt, so that rounding cannot change it.
PROBE = "One, two, three, four,"
# The most alternatives to a token that servers commonly give.
TOP = 20
# transformers serve takes a repetition penalty of the model's own configuration unless it is told a frequency penalty.
GREEDY: Mapping[str, Any] = {"temperature": 0, "frequency_penalty": 0}
# What servers call a penalty on repetition that some apply unasked (llama-cpp-python 1.1, vLLM what the model's
# configuration says): models here have none, so it is turned off where the name is accepted.
PENALTIES = ("repeat_penalty", "repetition_penalty")
# How log-probabilities are asked for: of the first new token, and of a text that is given.
CHAT_TOKENS: Mapping[str, Any] = {"logprobs": True, "top_logprobs": TOP}
TEXT_TOKENS: Mapping[str, Any] = {"logprobs": TOP}
# One new token, because some servers refuse to make none.
ECHO: Mapping[str, Any] = {"max_tokens": 1, "echo": True, "logprobs": 1}


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


def abilities_of(endpoint: Endpoint) -> Abilities:
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
    talked = endpoint.attempt(talk, **found.extras, **CHAT_TOKENS) if can_talk else None
    written = endpoint.attempt(write, **found.extras, **TEXT_TOKENS) if can_write else None
    return replace(
        found,
        chat_tokens=talked is not None and begins_likeliest(generated_text(talked), likeliest_in_chat(talked)),
        text_tokens=written is not None and begins_likeliest(generated_text(written), likeliest_in_completion(written)),
        echo=can_write and _echoes_itself(endpoint, written or endpoint.attempt(write, **found.extras), found.extras),
    )


def _echoes_itself(endpoint: Endpoint, written: Any, extras: Mapping[str, Any]) -> bool:
    """Whether the token that the server wrote after the probe is its likeliest there in the echo too.

    llama-cpp-python 0.3.36 gives each token the log-probability it would have one place later.
    """
    token = generated_text(written) if written is not None else None
    if not token:
        return False
    reply = endpoint.attempt(endpoint.complete, prompt=PROBE + token, **GREEDY, **extras, **ECHO)
    if reply is None:
        return False
    score = echoed_score(reply.choices[0], PROBE, token, generated=new_tokens(reply))
    return isinstance(score, ContinuationScore) and score.is_greedy
