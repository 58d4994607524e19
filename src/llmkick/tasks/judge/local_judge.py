"""A judge on this machine: a model that is loaded at the first question and decodes greedily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llmkick.errors import JudgeError, KickError
from llmkick.models.language_model import GenerateRequest, Generation, LanguageModel, Unanswered
from llmkick.models.thoughts import THOUGHT_TOKENS, Separated, Thinking, why_no_answer
from llmkick.tasks.judge.clients import OVER_BUDGET, THINKS, NoReply, Question, Replies, Reply

# Number of questions per batch.
LOCAL_BATCH = 8


@dataclass(kw_only=True)
class LocalJudge:
    """A model on this machine, loaded at the first question, with greedy decoding."""

    reference: str
    dtype: str = "auto"
    device: str = "auto"
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        self._model: LanguageModel | None = None
        self._thinks = False

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the model, once it is loaded, and whether it thinks."""
        lines = () if self._model is None else tuple(self._model.notes)
        return (*lines, f"the judge {self.reference}: {THINKS}") if self._thinks else lines

    @cached_property
    def identity(self) -> str:
        """The digest of the model's files."""
        from llmkick.models.checkpoints.references import locate

        try:
            return locate(self.reference).digest
        except KickError as error:
            raise JudgeError(f"the judge {self.reference} cannot be used: {error}") from error

    def check(self) -> None:
        """Find the model's files. Raises JudgeError if there are none."""
        _ = self.identity

    def ask(self, questions: Sequence[Question], *, known: Collection[str], afford: Callable[[], bool]) -> Replies:
        """Generate in batches that depend only on the questions, not on `known`, so that a resumed run is identical."""
        for start in range(0, len(questions), LOCAL_BATCH):
            batch = questions[start : start + LOCAL_BATCH]
            new = [question.key for question in batch if question.key not in known]
            if not new:
                continue
            if not afford():
                yield from ((key, NoReply(reason=OVER_BUDGET)) for key in new)
                continue
            if self._model is None:
                from llmkick.models.checkpoints.loading import load_model  # it imports torch, which few judges need

                self._model = load_model(self.reference, dtype=self.dtype, device=self.device)
            for question, reply in zip(batch, self._replies(self._model, batch), strict=True):
                if question.key in new:
                    yield question.key, reply

    def _replies(self, model: LanguageModel, batch: Sequence[Question]) -> list[Reply | NoReply]:
        """The replies to a batch. Where the limit cut a thought, the question is asked once more, with more room."""
        requests = [self._request(model, question) for question in batch]
        answers = list(zip(requests, model.generate(requests), strict=True))
        replies = [_reply(model, request, answer) for request, answer in answers]
        longer = {
            place: _with_room(model, request)
            for place, (request, answer) in enumerate(answers)
            if _is_cut_thought(request, answer) and _with_room(model, request) != request
        }
        self._thinks = self._thinks or bool(longer)
        for place, answer in zip(longer, model.generate(list(longer.values())) if longer else (), strict=True):
            reply = _reply(model, longer[place], answer)
            if isinstance(reply, Reply):  # both attempts are paid for
                prompt_tokens, completion_tokens = 2 * reply.prompt_tokens, self.max_tokens + reply.completion_tokens
                reply = replace(reply, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
            replies[place] = reply
        return replies

    def _request(self, model: LanguageModel, question: Question) -> GenerateRequest:
        if model.has_chat_template:
            return GenerateRequest(question.messages, max_new_tokens=self.max_tokens)
        text = "\n\n".join(message.content for message in question.messages)
        return GenerateRequest(text, max_new_tokens=self.max_tokens)


def _cut_thought(request: GenerateRequest, thinking: Thinking) -> str:
    """The reason of a model with this `thinking` for no answer where the limit ended it inside its thought."""
    return why_no_answer(Separated("", unfinished=True), cut=True, limit=request.max_new_tokens, thinking=thinking)


def _is_cut_thought(request: GenerateRequest, answer: Generation | Unanswered) -> bool:
    return isinstance(answer, Unanswered) and answer.reason == _cut_thought(request, "off")


def _with_room(model: LanguageModel, request: GenerateRequest) -> GenerateRequest:
    """The request with room for a thought, as far as the model's context has it."""
    free = model.max_tokens - model.prompt_tokens(request.prompt) - request.max_new_tokens
    return replace(request, max_new_tokens=request.max_new_tokens + max(0, min(THOUGHT_TOKENS, free)))


def _reply(model: LanguageModel, request: GenerateRequest, answer: Generation | Unanswered) -> Reply | NoReply:
    if _is_cut_thought(request, answer):
        # The model's own reason advises to turn thinking on, which a judge has no option for.
        return NoReply(reason=_cut_thought(request, "on"))
    if isinstance(answer, Unanswered):
        return NoReply(reason=answer.reason)
    return Reply(
        text=answer.text,
        cut=answer.finish == "length",
        prompt_tokens=model.prompt_tokens(request.prompt),
        completion_tokens=answer.tokens,
    )
