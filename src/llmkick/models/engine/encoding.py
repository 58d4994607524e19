"""Requests as token ids: prompt and continuation are tokenised as one text, then split where the prompt ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmkick.models.engine.batches import Ids
from llmkick.models.engine.network import has_rows
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.language_model import Prompt, ScoreRequest, Unanswered

# Requests that the tokenizer gets in one call: their token ids are in memory at once.
TOKENIZED_TOGETHER = 512


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """Token ids of a request; `index` is its place in the caller's list."""

    index: int
    prompt: Ids
    continuation: Ids
    boundary_moved: bool

    @property
    def scored_tokens(self) -> int:
        """How many tokens get a log-probability: all, but the first where there is no prompt to predict it."""
        return len(self.continuation) if self.prompt else len(self.continuation) - 1

    @property
    def inputs(self) -> Ids:
        """The tokens to run when the request runs whole: the last one is only predicted."""
        return (self.prompt + self.continuation)[:-1]


def encode_requests(encoder: PromptEncoder, requests: Sequence[ScoreRequest]) -> Iterator[EncodedRequest]:
    """Tokenise prompt and continuation as one text, and find where the continuation begins."""
    prompts: dict[tuple[Prompt, bool], Ids] = {}  # the options of a question share their prompt
    for start in range(0, len(requests), TOKENIZED_TOGETHER):
        chunk = requests[start : start + TOKENIZED_TOGETHER]
        new = list(dict.fromkeys(key for key in map(_prompt_key, chunk) if key not in prompts))
        texts = [(request.prompt, request.continuation) for request in chunk if isinstance(request.continuation, str)]
        encoded = iter(encoder.encode_all([*((prompt, "") for prompt, _ in new), *texts]))
        for key in new:
            ids = tuple(next(encoded))
            # An empty prompt before token ids stays empty; before text it is tokenised, and has the start token.
            prompts[key] = ids if any(key) else ()
        for index, request in enumerate(chunk, start):
            together = tuple(next(encoded)) if isinstance(request.continuation, str) else ()
            yield _encoded(encoder, index, request, prompts[_prompt_key(request)], together)


def encode_answerable(
    encoder: PromptEncoder, requests: Sequence[ScoreRequest], *, vocabulary: int, context: int
) -> tuple[list[EncodedRequest], dict[int, Unanswered]]:
    """The requests that a model with this vocabulary and context can score, and by place why it cannot score others."""
    encoded: list[EncodedRequest] = []
    unanswered: dict[int, Unanswered] = {}
    for request in encode_requests(encoder, requests):
        total = len(request.prompt) + len(request.continuation)
        if request.scored_tokens < 1:
            unanswered[request.index] = Unanswered(reason="the continuation has no token to score")
        elif total > context:
            unanswered[request.index] = Unanswered(reason=f"{total} tokens exceed the context of {context}")
        elif not has_rows((*request.prompt, *request.continuation), vocabulary):
            unanswered[request.index] = Unanswered(reason=f"it holds token ids outside the vocabulary of {vocabulary}")
        else:
            encoded.append(request)
    return encoded, unanswered


def _prompt_key(request: ScoreRequest) -> tuple[Prompt, bool]:
    return request.prompt, isinstance(request.continuation, str)


def _encoded(encoder: PromptEncoder, index: int, request: ScoreRequest, prompt: Ids, together: Ids) -> EncodedRequest:
    """`together` are the token ids of prompt and continuation as one text, empty where the continuation is ids."""
    continuation, moved = request.continuation, False
    if isinstance(continuation, str):
        moved = together[: len(prompt)] != prompt
        continuation = tuple(encoder.tokenize_alone(continuation)) if moved else together[len(prompt) :]
    return EncodedRequest(index=index, prompt=prompt, continuation=tuple(continuation), boundary_moved=moved)
