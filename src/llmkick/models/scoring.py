"""Log-likelihoods of continuations: a question's prompt runs once, shared prefixes run once.

Logits are turned into log-probabilities in float32, and only where a continuation needs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.batching import (
    Ids,
    Runner,
    budget_batches,
    can_reuse_cache,
    group_by_prefix,
    pad,
    token_budget,
)
from llmkick.models.language_model import ContinuationScore, ScoreRequest, TransformersModel, Unanswered

# Positions whose float32 logits are alive at once: 512 × 128k vocabulary × 4 bytes is 256 MB.
LOGIT_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """Token ids of a request; `index` is its place in the caller's list."""

    index: int
    prompt: Ids
    continuation: Ids
    boundary_moved: bool

    @property
    def scored_tokens(self) -> int:
        """Without a prompt the first token has nothing that predicts it."""
        return len(self.continuation) if self.prompt else len(self.continuation) - 1


Scores = dict[int, ContinuationScore | Unanswered]


def score_requests(model: TransformersModel, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
    """One score a request, in the order of `requests`."""
    scores: Scores = {}
    encoded: list[EncodedRequest] = []
    vocabulary = model.network.get_input_embeddings().weight.shape[0]
    for index, request in enumerate(requests):
        one = encode_request(model, index, request)
        total = len(one.prompt) + len(one.continuation)
        if one.scored_tokens < 1:
            scores[index] = Unanswered(reason="the continuation has no token to score")
        elif total > model.max_tokens:
            scores[index] = Unanswered(reason=f"{total} tokens exceed the context of {model.max_tokens}")
        elif not 0 <= min(one.continuation) <= max(one.continuation) < vocabulary:
            scores[index] = Unanswered(reason=f"it holds token ids outside the vocabulary of {vocabulary}")
        else:
            encoded.append(one)
    with torch.inference_mode():
        # A batch holds its longest prompt beside its longest continuation, not always of the same request.
        columns = max((len(one.prompt) for one in encoded), default=0)
        columns += max((len(one.continuation) for one in encoded), default=0)
        reuse = can_reuse_cache(model.network, columns)
        prompted = [one for one in encoded if one.prompt and reuse]
        _score_prompted(model, prompted, scores)
        _score_whole(model, [one for one in encoded if not (one.prompt and reuse)], scores)
    return [scores[index] for index in range(len(requests))]


def encode_request(model: TransformersModel, index: int, request: ScoreRequest) -> EncodedRequest:
    """Tokenise prompt and continuation as one text, and find where the continuation begins."""
    if not isinstance(request.continuation, str):
        prompt = tuple(model.encode(request.prompt)) if request.prompt else ()
        return EncodedRequest(
            index=index, prompt=prompt, continuation=tuple(request.continuation), boundary_moved=False
        )
    prompt = tuple(model.encode(request.prompt))
    together = tuple(model.encode(request.prompt, request.continuation))
    if together[: len(prompt)] == prompt:
        return EncodedRequest(index=index, prompt=prompt, continuation=together[len(prompt) :], boundary_moved=False)
    apart = tuple(model.tokenizer(request.continuation, add_special_tokens=False, verbose=False)["input_ids"])
    return EncodedRequest(index=index, prompt=prompt, continuation=apart, boundary_moved=True)


def _score_prompted(model: TransformersModel, encoded: list[EncodedRequest], scores: Scores) -> None:
    """Requests with a prompt, through the cache: each distinct prompt runs once."""
    by_prompt: dict[Ids, list[EncodedRequest]] = {}
    for one in encoded:
        by_prompt.setdefault(one.prompt, []).append(one)
    prompts = list(by_prompt)
    if not prompts:
        return
    runner = Runner(model.network, model.device)
    budget = token_budget(model.network, model.device)
    for indices, shared in group_by_prefix(prompts):
        prefix_cache = runner.run_prefix(prompts[indices[0]][:shared]) if shared else None
        questions = [by_prompt[prompts[index]] for index in indices]
        for batch in budget_batches([_cached_tokens(question) for question in questions], budget, max_rows=256):
            _score_batch(runner, [questions[index] for index in batch], shared, prefix_cache, scores)


def _cached_tokens(question: list[EncodedRequest]) -> int:
    """Cached tokens of a question: its prompt is repeated for each continuation that needs a forward."""
    rows = max(1, sum(len(one.continuation) > 1 for one in question))
    return rows * (len(question[0].prompt) + max(len(one.continuation) for one in question))


def _score_batch(
    runner: Runner, questions: list[list[EncodedRequest]], shared: int, prefix_cache: object, scores: Scores
) -> None:
    state = runner.prefill([question[0].prompt for question in questions], shared, prefix_cache)
    first = F.log_softmax(state.next_logits, dim=-1)
    rows = [(row, one) for row, question in enumerate(questions) for one in question]
    for row, one in rows:
        if len(one.continuation) == 1:
            scores[one.index] = _score(first[row][None], one)
    longer = [(row, one) for row, one in rows if len(one.continuation) > 1]
    if not longer:
        return
    state.select(torch.tensor([row for row, _ in longer], device=runner.device))
    ids, own_mask = pad([one.continuation[:-1] for _, one in longer], runner.device, left=False)
    positions = state.lengths[:, None] + torch.arange(ids.shape[1], device=runner.device)
    mask = torch.cat([state.mask, own_mask], dim=1)
    logits = runner.forward(ids, mask=mask, positions=positions, cache=state.cache, keep_last=False)
    for index, (row, one) in enumerate(longer):
        rest = F.log_softmax(logits[index, : len(one.continuation) - 1].float(), dim=-1)
        scores[one.index] = _score(torch.cat([first[row][None], rest]), one)


def _score(logprobs: Tensor, one: EncodedRequest) -> ContinuationScore | Unanswered:
    """(tokens, vocabulary) log-probabilities, one row for each scored token → the score."""
    target = torch.tensor(one.continuation[-one.scored_tokens :], device=logprobs.device)
    picked = logprobs.gather(1, target[:, None])[:, 0]
    return _result(float(picked.double().sum()), bool((logprobs.argmax(1) == target).all()), one)


def _result(logprob: float, is_greedy: bool, one: EncodedRequest) -> ContinuationScore | Unanswered:
    if not math.isfinite(logprob):
        return Unanswered(reason="the model's output is NaN or Inf")
    return ContinuationScore(
        logprob=logprob, tokens=one.scored_tokens, is_greedy=is_greedy, boundary_moved=one.boundary_moved
    )


def _score_whole(model: TransformersModel, encoded: list[EncodedRequest], scores: Scores) -> None:
    """Requests run whole, without a cache: running text, and networks whose cache cannot be reused."""
    runner = Runner(model.network, model.device)
    vocabulary = model.network.config.get_text_config(decoder=True).vocab_size
    # The logits of every position are alive at once, in the network's dtype: at most about 0.5 GB.
    budget = max(1, int(0.5e9 / (vocabulary * model.network.dtype.itemsize)))
    lengths = [len(one.prompt) + len(one.continuation) for one in encoded]
    for batch in budget_batches(lengths, budget, max_rows=64):
        rows = [encoded[index] for index in batch]
        ids, mask = pad([(one.prompt + one.continuation)[:-1] for one in rows], runner.device, left=False)
        positions = torch.arange(ids.shape[1], device=runner.device)[None].expand(len(rows), -1)
        logits = runner.forward(ids, mask=mask, positions=positions, cache=None, keep_last=False)
        for index, one in enumerate(rows):
            end = len(one.prompt) + len(one.continuation) - 1
            scores[one.index] = _score_in_pieces(logits[index, end - one.scored_tokens : end], one)


def _score_in_pieces(logits: Tensor, one: EncodedRequest) -> ContinuationScore | Unanswered:
    """Like `_score`, from (tokens, vocabulary) raw logits, a few rows in float32 at a time."""
    target = torch.tensor(one.continuation[-one.scored_tokens :], device=logits.device)
    total, greedy = 0.0, True
    for piece, wanted in zip(torch.split(logits, LOGIT_ROWS), torch.split(target, LOGIT_ROWS), strict=True):
        total -= float(F.cross_entropy(piece.float(), wanted, reduction="none").double().sum())
        greedy = greedy and bool((piece.argmax(1) == wanted).all())
    return _result(total, greedy, one)
