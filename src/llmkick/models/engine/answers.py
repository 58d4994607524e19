"""Rows of a batch while they are answered: where an answer ends, and its text without thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmkick.models.engine.batches import Ids
from llmkick.models.engine.network import has_rows
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.engine.runner import Prefix
from llmkick.models.language_model import Finish, GenerateRequest, Generation, Unanswered
from llmkick.models.thoughts import THOUGHT_TOKENS, Separated, separate, why_no_answer


@dataclass(eq=False)
class Row:
    """A request while it is being answered; `prefix` is the shared prefix that its prompt begins with.

    `opened`: the prompt ends inside a thought. `room` is how many tokens a thought may have beside the answer's, and
    `thought` how many it had.
    """

    index: int
    request: GenerateRequest
    prompt: Ids
    prefix: Prefix | None = None
    tokens: list[int] = field(default_factory=list)
    opened: bool = False
    room: int = 0
    thought: int = 0
    outcome: Generation | Unanswered | None = None

    @property
    def most_new(self) -> int:
        """The most tokens that thought and answer can have together."""
        return self.request.max_new_tokens + self.room

    @property
    def columns(self) -> int:
        """The most tokens that prompt and answer can have together."""
        return len(self.prompt) + self.most_new

    @property
    def text(self) -> Ids:
        """Prompt and answer so far: the tokens that run again when the row has lost its cache."""
        return (*self.prompt, *self.tokens)


def rows_of(requests: Sequence[GenerateRequest], encoder: PromptEncoder, *, vocabulary: int, context: int) -> list[Row]:
    """A row for each request; those that a model with this vocabulary and context cannot answer have an outcome."""
    rows = []
    for index, request in enumerate(requests):
        row = Row(index=index, request=request, prompt=tuple(encoder.encode(request.prompt)))
        if not row.prompt:
            row.outcome = Unanswered(reason="the prompt is empty")
        elif not has_rows(row.prompt, vocabulary):
            row.outcome = Unanswered(reason=f"it holds token ids outside the vocabulary of {vocabulary}")
        elif row.columns > context:
            row.outcome = Unanswered(
                reason=f"a prompt of {len(row.prompt)} tokens leaves no room for {request.max_new_tokens} new "
                f"tokens in a context of {context}"
            )
        elif encoder.thinking == "on" and not isinstance(request.prompt, str):
            row.opened = encoder.template.opens_thought
            row.room = min(THOUGHT_TOKENS, context - row.columns)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Answers:
    """Turns the tokens of a row into its outcome; `end_tokens` are the token ids that end an answer."""

    encoder: PromptEncoder
    end_tokens: frozenset[int]

    def append(self, row: Row, token: int, *, is_finite: bool) -> None:
        """Add a token to a row; the row ends with an end token, a complete stop string, or its last allowed token."""
        if not is_finite:
            row.outcome = Unanswered(reason="the model's output is NaN or Inf")
            return
        if token in self.end_tokens:
            row.outcome = self.finished(row, "end")
            return
        row.tokens.append(token)
        if row.request.stops or row.room:
            separated = self._separated(row, row.tokens)
            if separated.unfinished or separated.is_only_thought:
                row.thought = len(row.tokens)
            elif first_stop(separated.answer, row.request.stops) is not None:
                row.outcome = self.finished(row, "stop")
                return
        # Without room for a thought, it takes of the answer's tokens.
        limit = min(row.most_new, row.request.max_new_tokens + (row.thought if row.room else 0))
        if len(row.tokens) >= limit:
            row.outcome = self.finished(row, "length")

    def finished(self, row: Row, finish: Finish) -> Generation | Unanswered:
        """The answer of a row, without thoughts and its stop string; Unanswered where it is only a thought."""
        separated = self._separated(row, row.tokens)
        if separated.is_only_thought:
            cut, thinking = finish == "length", self.encoder.thinking
            return Unanswered(reason=why_no_answer(separated, cut=cut, limit=row.most_new, thinking=thinking))
        tokens = row.tokens
        if separated.thought:
            tokens = tokens[self._end_of_thought(row) :]
        return Generation(
            text=separated.answer[: first_stop(separated.answer, row.request.stops)],
            tokens=len(tokens),
            finish=finish,
            unique_tokens=len(set(tokens)),
            has_thought=bool(separated.thought.strip()),
        )

    def _separated(self, row: Row, tokens: Sequence[int]) -> Separated:
        return separate(self.encoder.decode(list(tokens)), opened=row.opened)

    def _end_of_thought(self, row: Row) -> int:
        """How many of the first tokens hold no part of the answer: the longest beginning that is only a thought."""
        counts = range(len(row.tokens), row.thought, -1)
        return next(
            (count for count in counts if self._separated(row, row.tokens[:count]).is_only_thought), row.thought
        )


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, None when there is none.

    A stop string inside the leading whitespace does not count: an answer that begins with a blank line is
    not empty.
    """
    leading = len(text) - len(text.lstrip())
    positions = [text.find(stop, max(0, leading - len(stop) + 1)) for stop in stops]
    return min((position for position in positions if position >= 0), default=None)
