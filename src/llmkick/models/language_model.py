"""What a language model is to us: it scores continuations and it generates text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from llmkick.errors import ConfigError


class Message(NamedTuple):
    """One turn of a conversation; role is "system", "user" or "assistant"."""

    role: str
    content: str


# Raw text, or a conversation that the model renders with its own chat template. A conversation that
# ends with an assistant message is continued from there.
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is `continuation` after `prompt`? The continuation owns its leading space.

    A tuple of token ids as continuation, with an empty prompt, is a window of running text: its first
    token has nothing before it and is not scored.
    """

    prompt: Prompt
    continuation: str | tuple[int, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt` greedily until a stop string, the end of text, or `max_new_tokens`.

    A stop string counts only where it reaches beyond the whitespace that the answer begins with: with the
    stop "\\n", a blank line before the answer does not end it.
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

    `boundary_moved` says that prompt and continuation, tokenised together, merge across their boundary;
    the score is then that of the two tokenised apart. `method` says how a server gave it: "first token" from the
    likeliest first tokens of its answer, "generated letter" without any log-probability (0 for the chosen option).
    """

    logprob: float
    tokens: int
    is_greedy: bool
    boundary_moved: bool = False
    method: Literal["log-probability", "first token", "generated letter"] = "log-probability"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated text without the stop string; `finish` is "stop", "end" or "length".

    `unique_tokens` is how many different tokens it has, where the model can tell.
    """

    text: str
    tokens: int
    finish: str
    unique_tokens: int | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A request that has no answer, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What identifies a model. `digest` covers everything that can change an answer but the dtype."""

    name: str
    revision: str
    digest: str
    architecture: str
    parameters: int
    dtype: str
    source_precision: str = "float"


class LanguageModel(Protocol):
    """The whole of what tasks ask of a model."""

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
        """Token ids of raw text, with the special tokens that the tokenizer adds by default."""
        ...

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score a request, in order."""
        ...

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation a request, in order."""
        ...
