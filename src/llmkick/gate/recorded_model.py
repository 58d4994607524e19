"""A model whose answers are recorded by content: what was asked before is recalled, and the model is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar, cast

from pydantic import JsonValue, TypeAdapter

from llmkick.errors import DataError
from llmkick.gate.answer_file import AnswerFile, AnswerHeader
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
from llmkick.study.cells import digest_of
from llmkick.study.results.noise_floor import HALF_PRECISIONS

Answer = TypeVar("Answer")


class MissingAnswerError(DataError):
    """A question whose answer is not in a file of stored answers."""


@dataclass(kw_only=True)
class RecordedModel:
    """A LanguageModel that opens its model only for questions without a recorded answer.

    Without `open_model`, such a question raises MissingAnswerError. `before_asking` is called before the model is
    asked; `asked` counts the scores and texts that the model gave. `keeps_unanswered` says that a question without an
    answer would have none the next time either, which is not so for a server.
    """

    file: AnswerFile
    identity: dict[str, JsonValue]
    open_model: Callable[[], LanguageModel] | None
    keeps_unanswered: bool = True
    before_asking: Callable[[], None] = lambda: None
    asked: int = 0
    _live: LanguageModel | None = None

    @property
    def header(self) -> AnswerHeader:
        """What tasks need to know about the model."""
        if self.file.header is None:
            self.file.begin(AnswerHeader.of(self._model("its name"), self.identity))
        assert self.file.header is not None
        return self.file.header

    def _model(self, question: str) -> LanguageModel:
        if self._live is None:
            if self.open_model is None:
                raise MissingAnswerError(f"{self.file.path} holds no answer to {question}")
            self._live = self.open_model()
        return self._live

    @property
    def info(self) -> ModelInfo:
        """Name, digest, size and precision."""
        return self.header.info

    @property
    def max_tokens(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self.header.max_tokens

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self.header.has_chat_template

    @property
    def answers_all_requests(self) -> bool:
        """Whether `refusal` is always empty."""
        return self.header.answers_all_requests

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for readers of this model's answers."""
        return self.header.notes if self._live is None else tuple(self._live.notes)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text."""
        return self._recalled("tokenize", text, lambda model: model.tokenize(text), list[int])

    def prompt_tokens(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt."""
        return self._recalled("prompt_tokens", prompt, lambda model: model.prompt_tokens(prompt), int)

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Why this model cannot answer requests of this kind; empty when it can."""
        asked = [asdict(request) for request in requests]
        return self._recalled("refusal", asked, lambda model: model.refusal(requests), str)

    def _recalled(
        self, kind: str, question: object, answer: Callable[[LanguageModel], Answer], of: type[Answer]
    ) -> Answer:
        """Return a property of a text, from the file or from the model."""
        key = digest_of([kind, question])
        if key not in self.file.answers:
            self.header  # noqa: B018 - the first line of the file
            self.file.add([(key, cast(JsonValue, answer(self._model(f"{kind} of {str(question)[:60]!r}"))))])
        return TypeAdapter(of).validate_python(self.file.answers[key])

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order."""
        return self._answers("logprobs", requests, lambda model, missing: model.logprobs(missing), ContinuationScore)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation for each request, in order."""
        return self._answers("generate", requests, lambda model, missing: model.generate(missing), Generation)

    def _answers(
        self,
        kind: str,
        requests: Sequence[Request],
        ask: Callable[[LanguageModel, Sequence[Request]], Sequence[Answer | Unanswered]],
        of: type[Answer],
    ) -> list[Answer | Unanswered]:
        keys = self._keys(kind, requests)
        given: dict[str, Answer | Unanswered] = {
            key: _decoded(self.file.answers[key], of) for key in keys if key in self.file.answers
        }
        missing = [place for place, key in enumerate(keys) if key not in given]
        if missing:
            model = self._model(f"{_end(requests[missing[0]].prompt)!r}")
            self.before_asking()
            self.header  # noqa: B018 - the first line of the file
            answers = ask(model, [requests[place] for place in missing])
            self.asked += len(missing)
            fresh = [(keys[place], answer) for place, answer in zip(missing, answers, strict=True)]
            kept = [pair for pair in fresh if self.keeps_unanswered or not isinstance(pair[1], Unanswered)]
            self.file.add([(key, _encoded(answer)) for key, answer in kept])
            given.update(fresh)
        return [given[key] for key in keys]

    def _keys(self, kind: str, requests: Sequence[Request]) -> list[str]:
        """Return the key of each request.

        In half precision the other requests of a batch change an answer slightly. There the key covers all of them, so
        that a recalled answer is, to the bit, the one that the model would give again.
        """
        contents = [asdict(request) for request in requests]
        batch = digest_of(contents) if self.info.dtype in HALF_PRECISIONS else ""
        return [digest_of([kind, content, batch]) for content in contents]


Request = TypeVar("Request", ScoreRequest, GenerateRequest)


def _end(prompt: Prompt) -> str:
    """Return the last characters of a prompt, by which a reader recognises it."""
    return (prompt if isinstance(prompt, str) else prompt[-1].content)[-60:]


def _encoded(answer: object) -> JsonValue:
    """Return an answer as JSON; one without an answer is `{"reason": …}`."""
    return cast(JsonValue, dict(vars(answer)))


def _decoded(value: JsonValue, of: type[Answer]) -> Answer | Unanswered:
    if isinstance(value, dict) and set(value) == {"reason"}:
        return Unanswered(reason=str(value["reason"]))
    return TypeAdapter(of).validate_python(value)
