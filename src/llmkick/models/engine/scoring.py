"""Log-likelihoods of continuations: a question's prompt runs once, shared prefixes run once.

Logits are turned into log-probabilities in float32, and only where a continuation needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.batch_budget import run_in_batches
from llmkick.models.engine.batches import Ids, group_by_prefix, plan_batches, plan_rows
from llmkick.models.engine.encoding import EncodedRequest, encode_requests
from llmkick.models.engine.kv_cache import can_reuse_cache, stretched_beyond
from llmkick.models.engine.packed_prompts import MOST_TOKENS
from llmkick.models.engine.runner import Prefilled, Prefix, Runner, pad, prefix_groups
from llmkick.models.language_model import ContinuationScore, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel

MAX_QUESTIONS = 256
MAX_WHOLE_ROWS = 64
# The logits of a forward are alive at once, in the network's dtype.
LOGIT_BYTES = 0.5e9
# Positions whose float32 logits are alive at once: 512 × 128k vocabulary × 4 bytes is 256 MB.
LOGIT_ROWS = 512

# Requests that one row answers: those of one prompt, or those that run the same tokens.
Question = list[EncodedRequest]
Scores = dict[int, ContinuationScore | Unanswered]


def score_requests(model: TransformersModel, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
    """One score a request, in the order of `requests`."""
    scores: Scores = {}
    encoded: list[EncodedRequest] = []
    vocabulary = model.network.get_input_embeddings().weight.shape[0]
    for one in encode_requests(model, requests):
        total = len(one.prompt) + len(one.continuation)
        if one.scored_tokens < 1:
            scores[one.index] = Unanswered(reason="the continuation has no token to score")
        elif total > model.max_tokens:
            scores[one.index] = Unanswered(reason=f"{total} tokens exceed the context of {model.max_tokens}")
        elif not 0 <= min(one.continuation) <= max(one.continuation) < vocabulary:
            scores[one.index] = Unanswered(reason=f"it holds token ids outside the vocabulary of {vocabulary}")
        else:
            encoded.append(one)
    if encoded:
        with torch.inference_mode():
            _Scorer(model, scores).score(encoded)
    return [scores[index] for index in range(len(requests))]


class _Scorer:
    """One call's worth of scoring; results go into `scores` as they come."""

    def __init__(self, model: TransformersModel, scores: Scores) -> None:
        self.model = model
        self.scores = scores
        self.positions = max(1, int(LOGIT_BYTES / (_vocabulary(model) * model.network.dtype.itemsize)))

    def score(self, encoded: list[EncodedRequest]) -> None:
        """Requests with a prompt go through the cache where the network allows it, the others run whole."""
        # A batch holds its longest prompt beside its longest continuation, not always of the same request.
        columns = max(len(one.prompt) for one in encoded) + max(len(one.continuation) for one in encoded)
        reusable = can_reuse_cache(self.model.network, columns)
        self.runner = Runner(self.model.network, self.model.device, reusable=reusable)
        tokens = sum(len(one.prompt) + len(one.continuation) for one in encoded)
        self.model.allowance.fit(self.model.network, self.model.device, tokens)
        self._score_prompted([one for one in encoded if one.prompt and reusable])
        self._score_whole([one for one in encoded if not (one.prompt and reusable)])

    def _budget(self) -> int:
        return self.model.allowance.budget(self.model.network, self.model.device)

    def _run(
        self,
        questions: list[Question],
        *,
        plan: Callable[[Sequence[Question], int], Iterator[list[int]]],
        work: Callable[[list[Question]], None],
    ) -> None:
        run_in_batches(
            questions,
            budget=self._budget,
            plan=plan,
            work=work,
            cost=_columns,
            shrink=lambda reason: self.model.allowance.shrink(self.model.network, self.model.device, reason),
            give_up=self._give_up,
        )

    def _give_up(self, question: Question) -> None:
        reason = f"the memory of {self.model.device} does not hold its {_columns(question)} tokens"
        self.scores.update({one.index: Unanswered(reason=reason) for one in question})

    def _score_prompted(self, encoded: list[EncodedRequest]) -> None:
        """Through the cache: each distinct prompt runs once, what prompts share runs once."""
        by_prompt: dict[Ids, Question] = {}
        for one in encoded:
            by_prompt.setdefault(one.prompt, []).append(one)
        letters: list[Question] = []
        continued: list[Question] = []
        for question in by_prompt.values():
            (letters if all(len(one.continuation) == 1 for one in question) else continued).append(question)
        self._score_letters(letters)
        prompts = [question[0].prompt for question in continued]
        for indices, prefix in prefix_groups(self.runner, prompts):
            self._run_behind(prefix, [continued[index] for index in indices], self._score_continued)

    def _run_behind(
        self, prefix: Prefix, questions: list[Question], score: Callable[[list[Question], Prefix], None]
    ) -> None:
        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            own = [len(question[0].prompt) - len(prefix) for question in questions]
            columns = [_columns(question) for question in questions]
            return plan_batches(own, columns, budget=budget, max_rows=MAX_QUESTIONS)

        self._run(questions, plan=plan, work=lambda batch: score(batch, prefix))

    def _score_letters(self, questions: list[Question]) -> None:
        """Options of one token each come from the one position after their prompt.

        The longest prompt of a group runs whole, as it would alone; the others go on from what they share with it.
        """
        prompts = [question[0].prompt for question in questions]
        for indices, shared in group_by_prefix(prompts):
            group = [questions[index] for index in sorted(indices, key=lambda index: (-len(prompts[index]), index))]
            prefix = Prefix(self.runner, ())
            if shared:
                prefix = self._score_longest(group.pop(0), shared)
                if self.runner.unpadded:
                    group = self._score_unpadded(prefix, group)
            self._run_behind(prefix, group, self._score_last)

    def _score_unpadded(self, prefix: Prefix, questions: list[Question]) -> list[Question]:
        """In rows without padding; the questions that are left to be scored another way."""

        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            own = [len(question[0].prompt) - len(prefix) for question in questions]
            return plan_rows(own, most=min(MOST_TOKENS, budget - len(prefix)))

        def work(batch: list[Question]) -> None:
            if not self.runner.unpadded:
                return
            prompts = [question[0].prompt for question in batch]
            logits = self.runner.final_logits_unpadded(prompts, len(prefix), prefix.cache)
            if logits is None:
                self.runner.unpadded = False
            else:
                self._score_first(batch, logits)

        self._run(questions, plan=plan, work=work)
        return [question for question in questions if question[0].index not in self.scores]

    def _score_longest(self, question: Question, shared: int) -> Prefix:
        """The prefix of the first `shared` tokens of a question's prompt, which is answered on the way."""
        prompt = question[0].prompt
        prefix = Prefix(self.runner, prompt[:shared], within=prompt)

        def work(_: list[Question]) -> None:
            assert prefix.cache is not None, "no prefix is empty here"
            assert prefix.next_logits is not None, "they come with the cache"
            self._score_first([question], prefix.next_logits)

        self._run([question], plan=lambda *_: iter([[0]]), work=work)
        # A prompt that the memory does not hold has left none.
        return prefix if prefix.next_logits is not None else Prefix(self.runner, prompt[:shared])

    def _score_last(self, questions: list[Question], prefix: Prefix) -> None:
        prompts = [question[0].prompt for question in questions]
        self._score_first(questions, self.runner.final_logits(prompts, len(prefix), prefix.cache))

    def _score_first(self, questions: list[Question], next_logits: Tensor) -> None:
        """Options of one token, from (questions, vocabulary) float32."""
        first = F.log_softmax(next_logits, dim=-1)
        for row, question in enumerate(questions):
            self.scores.update({one.index: _score(first[row][None], one) for one in question})

    def _score_continued(self, questions: list[Question], prefix: Prefix) -> None:
        state = self.runner.prefill([question[0].prompt for question in questions], len(prefix), prefix.cache)
        first = F.log_softmax(state.next_logits, dim=-1)
        longer: list[tuple[int, EncodedRequest]] = []
        for row, one in ((row, one) for row, question in enumerate(questions) for one in question):
            if len(one.continuation) == 1:  # all letters of a question come from this one position
                self.scores[one.index] = _score(first[row][None], one)
            else:
                longer.append((row, one))
        lengths = [len(one.continuation) - 1 for _, one in longer]
        columns = [state.mask.shape[1] + length for length in lengths]
        plan = plan_batches(lengths, columns, budget=self._budget(), max_rows=MAX_QUESTIONS, max_tokens=self.positions)
        for batch in plan:
            self._score_longer([longer[index] for index in batch], state, first)

    def _score_longer(self, rows: list[tuple[int, EncodedRequest]], state: Prefilled, first: Tensor) -> None:
        """Options of several tokens, each beside a copy of its question's cache."""
        chosen = torch.tensor([row for row, _ in rows], device=self.runner.device)
        branch = state.taken(chosen)
        ids, own_mask = pad([one.continuation[:-1] for _, one in rows], self.runner.device, left=False)
        positions = branch.lengths[:, None] + torch.arange(ids.shape[1], device=self.runner.device)
        mask = torch.cat([branch.mask, own_mask], dim=1)
        logits = self.runner.forward(ids, mask=mask, positions=positions, cache=branch.cache)
        for index, (row, one) in enumerate(rows):
            rest = F.log_softmax(logits[index, : len(one.continuation) - 1].float(), dim=-1)
            self.scores[one.index] = _score(torch.cat([first[row][None], rest]), one)

    def _score_whole(self, encoded: list[EncodedRequest]) -> None:
        """Without a cache: running text, and networks whose cache cannot be reused."""
        by_inputs: dict[Ids, Question] = {}
        for one in encoded:
            by_inputs.setdefault(one.inputs, []).append(one)
        limit = stretched_beyond(self.model.network)

        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            lengths = [_columns(question) for question in questions]
            # Where positions depend on the longest text of a batch, a batch is one text.
            rows = MAX_WHOLE_ROWS if max(lengths) <= limit else 1
            return plan_batches(lengths, lengths, budget=min(budget, self.positions), max_rows=rows)

        self._run(list(by_inputs.values()), plan=plan, work=self._score_whole_batch)

    def _score_whole_batch(self, questions: list[Question]) -> None:
        ids, mask = pad([question[0].inputs for question in questions], self.runner.device, left=False)
        positions = torch.arange(ids.shape[1], device=self.runner.device)[None].expand(len(ids), -1)
        rows = [(row, one) for row, question in enumerate(questions) for one in question]
        keep = range(min(len(one.inputs) - one.scored_tokens for _, one in rows), ids.shape[1])
        logits = self.runner.forward(ids, mask=mask, positions=positions, cache=None, keep=keep)
        for row, one in rows:
            end = len(one.inputs) - keep.start
            self.scores[one.index] = _score_in_pieces(logits[row, end - one.scored_tokens : end], one)


def _vocabulary(model: TransformersModel) -> int:
    return int(model.network.config.get_text_config(decoder=True).vocab_size)


def _columns(question: Question) -> int:
    """Tokens that the longest row of a question holds."""
    return len(question[0].prompt) + max(len(one.continuation) for one in question)


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


def _score_in_pieces(logits: Tensor, one: EncodedRequest) -> ContinuationScore | Unanswered:
    """Like `_score`, from (tokens, vocabulary) raw logits, a few rows in float32 at a time."""
    target = torch.tensor(one.continuation[-one.scored_tokens :], device=logits.device)
    total, greedy = 0.0, True
    for piece, wanted in zip(torch.split(logits, LOGIT_ROWS), torch.split(target, LOGIT_ROWS), strict=True):
        total -= float(F.cross_entropy(piece.float(), wanted, reduction="none").double().sum())
        greedy = greedy and bool((piece.argmax(1) == wanted).all())
    return _result(total, greedy, one)
