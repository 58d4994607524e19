"""A language model that says what it is told to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelDefaults,
    ModelInfo,
    ScoreRequest,
    Unanswered,
)


def says(text: str, *, finish: str = "stop") -> Generation:
    """A generation of one token a word."""
    return Generation(text=text, tokens=len(text.split()), finish=finish)


def scored(logprob: float, *, tokens: int = 1, boundary_moved: bool = False) -> ContinuationScore:
    """The score of a continuation."""
    return ContinuationScore(logprob=logprob, tokens=tokens, is_greedy=False, boundary_moved=boundary_moved)


class ScriptedModel(ModelDefaults):
    """Answers by two functions of the request; a plain text is a finished answer, a number a log-probability.

    Text is tokenised into its characters' code points.
    """

    def __init__(
        self,
        *,
        generation: Callable[[GenerateRequest], str | Generation | Unanswered] | None = None,
        logprob: Callable[[ScoreRequest], float | ContinuationScore | Unanswered] | None = None,
        chat: bool = False,
        max_tokens: int = 4096,
    ) -> None:
        self.generation = generation or (lambda request: "")
        self.logprob = logprob or (lambda request: -1.0)
        self.has_chat_template = chat
        self.max_tokens = max_tokens
        self.info = ModelInfo(
            name="scripted", revision="", digest="scripted", architecture="", parameters=0, dtype="float32"
        )
        self.calls: list[list[ScoreRequest] | list[GenerateRequest]] = []

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        self.calls.append(list(requests))
        answers = [self.logprob(request) for request in requests]
        return [answer if isinstance(answer, ContinuationScore | Unanswered) else scored(answer) for answer in answers]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        self.calls.append(list(requests))
        answers = [self.generation(request) for request in requests]
        return [says(answer) if isinstance(answer, str) else answer for answer in answers]
