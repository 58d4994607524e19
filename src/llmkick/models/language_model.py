"""The interface of a language model: scoring and generation requests, their answers, and the model protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from llmkick.errors import ConfigError


class Message(NamedTuple):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


# Raw text, or a conversation that the model renders with its own chat template. A conversation that ends with an
# assistant message is continued from the end of that message.
Prompt = str | tuple[Message, ...]
# The most tokens that a chat template is assumed to add if it is unknown: per conversation and per turn.
TEMPLATE_TOKENS, TURN_TOKENS = 64, 8


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the log-probability of `continuation` after `prompt`. The continuation owns its leading space.

    A tuple of token ids as continuation, with an empty prompt, is a window of running text: its first token has no
    context and is not scored.
    """

    prompt: Prompt
    continuation: str | tuple[int, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """A request to continue `prompt` greedily until a stop string, an end token, or `max_new_tokens`.

    A stop string counts only where it reaches beyond the leading whitespace of the answer: with the stop "\\n", a
    blank line before the answer does not end it.
    """

    prompt: Prompt
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ConfigError(f"a stop string is empty: {self.stops!r}; leave it out")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class ContinuationScore:
    """Log-probability (nats) of a continuation of `tokens` scored tokens.

    `boundary_moved` says that a token spans the boundary of prompt and continuation when they are tokenised as one
    text; the score is then that of the two tokenised separately. `method` says how a server scored: "first token" from
    the likeliest first tokens of its answer, "generated letter" without log-probabilities (0 for the chosen option).
    """

    logprob: float
    tokens: int
    is_greedy: bool
    boundary_moved: bool = False
    method: Literal["log-probability", "first token", "generated letter"] = "log-probability"


# Why a generation ended: a stop string, an end token, or the limit on new tokens.
Finish = Literal["stop", "end", "length"]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated text without the stop string, and why it ended.

    `unique_tokens` is how many different tokens it has, where the model can tell. `has_thought` says that a thought was
    taken out of the text, `replaced` how many characters of it came broken from a server and are U+FFFD.
    """

    text: str
    tokens: int
    finish: Finish
    unique_tokens: int | None = field(default=None, compare=False)
    has_thought: bool = field(default=False, compare=False)
    replaced: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """The outcome of a request without an answer, and the reason."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What identifies a model. `digest` covers everything that can change an answer, except the dtype."""

    name: str
    revision: str
    digest: str
    architecture: str
    parameters: int
    dtype: str
    source_precision: str = "float"


class LanguageModel(Protocol):
    """All methods that tasks and studies call on a model; `ModelDefaults` has defaults for the last four."""

    @property
    def info(self) -> ModelInfo:
        """Name, digest, size and precision."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest prompt plus answer, in tokens."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens that the tokenizer puts before it by default."""
        ...

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation for each request, in order."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for readers of this model's answers, for example that a batch had to shrink."""
        ...

    @property
    def answers_all_requests(self) -> bool:
        """Whether `refusal` is always empty, so that callers need not prepare requests for it."""
        ...

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Why this model cannot answer requests of this kind, and what to do; empty when it can."""
        ...

    def prompt_tokens(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt, or an upper estimate if the model does not report it."""
        ...


class Tokenizing(Protocol):
    """An object that converts text into token ids."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text."""
        ...


class ModelDefaults:
    """Base of a LanguageModel that has nothing to note, answers every request, and keeps its chat template to itself.

    The model of a plug-in can inherit these methods instead of defining them.
    """

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def answers_all_requests(self) -> bool:
        """True."""
        return True

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Empty: every request is answered."""
        return ""

    def prompt_tokens(self: Tokenizing, prompt: Prompt) -> int:
        """Tokens of raw text; for a conversation, an upper estimate: its messages and a template allowance."""
        if isinstance(prompt, str):
            return len(self.tokenize(prompt))
        return TEMPLATE_TOKENS + sum(len(self.tokenize(message.content)) + TURN_TOKENS for message in prompt)
