"""Log-likelihoods of continuations: each prompt and each shared prefix runs once.

Logits are turned into log-probabilities in float32, and only where a continuation needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.batch_budget import BatchBudget, run_in_batches
from llmkick.models.engine.batches import Ids, group_by_prefix, plan_batches, plan_packed_rows
from llmkick.models.engine.branches import alike_in_length, run_branches
from llmkick.models.engine.encoding import EncodedRequest, encode_answerable
from llmkick.models.engine.kv_cache import can_reuse_cache, rotary_limit
from llmkick.models.engine.network import device_of, max_tokens_of, vocabulary_of
from llmkick.models.engine.packed_prompts import MAX_PACKED_TOKENS
from llmkick.models.engine.prefilled import Prefilled
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.engine.runner import Prefix, Runner, pad, pad_ids, padding_mask, prefix_groups, sent
from llmkick.models.engine.token_scores import TokenScores
from llmkick.models.language_model import ContinuationScore, ScoreRequest, Unanswered

MAX_QUESTIONS = 256
MAX_WHOLE_ROWS = 64
# The most bytes of logits, in the network's dtype, that a forward may make.
LOGIT_BYTES = 0.5e9

# Requests that a single row answers: those with the same prompt, or with the same tokens to run.
Question = list[EncodedRequest]
Scores = dict[int, ContinuationScore | Unanswered]


def score_requests(
    requests: Sequence[ScoreRequest], *, network: Any, encoder: PromptEncoder, budget: BatchBudget
) -> list[ContinuationScore | Unanswered]:
    """One score for each request, in the order of `requests`.

    The outcome is Unanswered for requests without a token to score, beyond the network's context, with token ids
    outside its vocabulary, or too large for the memory even alone.
    """
    vocabulary, context = vocabulary_of(network), max_tokens_of(network)
    encoded, unanswered = encode_answerable(encoder, requests, vocabulary=vocabulary, context=context)
    scores: Scores = dict(unanswered)
    if encoded:
        with torch.inference_mode():
            _Scorer(network, budget, scores).score(encoded)
    return [scores[index] for index in range(len(requests))]


class _Scorer:
    """Scores the requests of one call; fills `scores`, by the index of the request."""

    def __init__(self, network: Any, budget: BatchBudget, scores: Scores) -> None:
        self.network = network
        self.device = device_of(network)
        self.budget = budget
        self.scores = scores
        self.positions = max(1, int(LOGIT_BYTES / (_vocabulary(network) * network.dtype.itemsize)))

    def score(self, encoded: list[EncodedRequest]) -> None:
        """Requests with a prompt run through the cache where the network allows it; the others run whole."""
        # A batch holds its longest prompt beside its longest continuation, not always of the same request.
        columns = max(len(request.prompt) for request in encoded) + max(
            len(request.continuation) for request in encoded
        )
        reusable = can_reuse_cache(self.network, columns)
        self.runner = Runner(self.network, self.device, reusable=reusable)
        tokens = sum(len(request.prompt) + len(request.continuation) for request in encoded)
        self.budget.fit(self.network, self.device, tokens)
        self._score_prompted([request for request in encoded if request.prompt and reusable])
        self._score_whole([request for request in encoded if not (request.prompt and reusable)])

    def _batch_tokens(self) -> int:
        return self.budget.tokens(self.network, self.device)

    def _run(
        self,
        questions: list[Question],
        *,
        plan: Callable[[Sequence[Question], int], Iterator[list[int]]],
        work: Callable[[list[Question]], None],
    ) -> None:
        run_in_batches(
            questions,
            budget=self._batch_tokens,
            plan=plan,
            work=work,
            cost=_columns,
            shrink=lambda reason: self.budget.shrink(self.network, self.device, reason),
            give_up=self._give_up,
        )

    def _give_up(self, question: Question) -> None:
        reason = f"the memory of {self.device} does not hold its {_columns(question)} tokens"
        self.scores.update({request.index: Unanswered(reason=reason) for request in question})

    def _score_prompted(self, encoded: list[EncodedRequest]) -> None:
        """Through the cache: each distinct prompt runs once, and so does each shared prefix."""
        by_prompt: dict[Ids, Question] = {}
        for request in encoded:
            by_prompt.setdefault(request.prompt, []).append(request)
        letters: list[Question] = []
        continued: list[Question] = []
        for question in by_prompt.values():
            (letters if all(len(request.continuation) == 1 for request in question) else continued).append(question)
        self._score_letters(letters)
        prompts = [question[0].prompt for question in continued]
        for indices, prefix in prefix_groups(self.runner, prompts):
            self._run_behind(prefix, [continued[index] for index in indices], self._score_continued)

    def _run_behind(
        self, prefix: Prefix, questions: list[Question], score: Callable[[list[Question], Prefix], None]
    ) -> None:
        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            lengths = [len(question[0].prompt) - len(prefix) for question in questions]
            columns = [_columns(question) for question in questions]
            return plan_batches(lengths, columns, budget=budget, max_rows=MAX_QUESTIONS)

        self._run(questions, plan=plan, work=lambda batch: score(batch, prefix))

    def _score_letters(self, questions: list[Question]) -> None:
        """Options of one token each, from the position after their prompt.

        The longest prompt of a group runs whole, as it would alone; the others continue from the prefix that they
        share with it.
        """
        prompts = [question[0].prompt for question in questions]
        for indices, shared in group_by_prefix(prompts):
            group = [questions[index] for index in sorted(indices, key=lambda index: (-len(prompts[index]), index))]
            prefix = Prefix(self.runner, ())
            if shared:
                prefix = self._score_longest(group.pop(0), shared)
                if self.runner.packs_prompts:
                    group = self._score_packed(prefix, group)
            self._run_behind(prefix, group, self._score_last)

    def _score_packed(self, prefix: Prefix, questions: list[Question]) -> list[Question]:
        """Score in packed rows; returns the questions that have to be scored another way."""

        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            lengths = [len(question[0].prompt) - len(prefix) for question in questions]
            return plan_packed_rows(lengths, most=min(MAX_PACKED_TOKENS, budget - len(prefix)))

        def work(batch: list[Question]) -> None:
            if not self.runner.packs_prompts:
                return
            prompts = [question[0].prompt for question in batch]
            logits = self.runner.final_logits_packed(prompts, len(prefix), prefix.cache)
            if logits is None:
                self.runner.packs_prompts = False
            else:
                self._score_first(batch, logits)

        self._run(questions, plan=plan, work=work)
        return [question for question in questions if question[0].index not in self.scores]

    def _score_longest(self, question: Question, shared: int) -> Prefix:
        """The prefix of the first `shared` tokens of a question's prompt; the question is scored on the way."""
        prompt = question[0].prompt
        prefix = Prefix(self.runner, prompt[:shared], within=prompt)

        def work(_: list[Question]) -> None:
            assert prefix.cache is not None, "no prefix is empty here"
            assert prefix.next_logits is not None, "they come with the cache"
            self._score_first([question], prefix.next_logits)

        self._run([question], plan=lambda *_: iter([[0]]), work=work)
        # A prompt that did not fit into memory has left no cache.
        return prefix if prefix.next_logits is not None else Prefix(self.runner, prompt[:shared])

    def _score_last(self, questions: list[Question], prefix: Prefix) -> None:
        prompts = [question[0].prompt for question in questions]
        self._score_first(questions, self.runner.final_logits(prompts, len(prefix), prefix.cache))

    def _score_first(self, questions: list[Question], next_logits: Tensor) -> None:
        """Options of one token, from (questions, vocabulary) float32."""
        found = TokenScores()
        requests = [(row, request) for row, question in enumerate(questions) for request in question]
        found.add_first(F.log_softmax(next_logits, dim=-1), requests)
        self.scores.update(found.scores())

    def _score_continued(self, questions: list[Question], prefix: Prefix) -> None:
        if self.runner.prefills_without_mask:
            self._score_branches(questions, prefix)
            return
        state = self.runner.prefill([question[0].prompt for question in questions], len(prefix), prefix.cache)
        found = TokenScores()
        requests = [(row, request) for row, question in enumerate(questions) for request in question]
        found.add_first(F.log_softmax(state.next_logits, dim=-1), requests)
        longer = [(row, request) for row, request in requests if len(request.continuation) > 1]
        lengths = [len(request.continuation) - 1 for _, request in longer]
        columns = [state.mask.shape[1] + length for length in lengths]
        plan = plan_batches(
            lengths, columns, budget=self._batch_tokens(), max_rows=MAX_QUESTIONS, max_tokens=self.positions
        )
        for batch in plan:
            self._score_longer([longer[index] for index in batch], state, found)
        self.scores.update(found.scores())

    def _score_longer(self, rows: list[tuple[int, EncodedRequest]], state: Prefilled, found: TokenScores) -> None:
        """Options of several tokens, each with a copy of its question's cache."""
        chosen = sent(torch.tensor([row for row, _ in rows]), self.runner.device)
        branch = state.select(chosen)
        ids, own_mask = pad([request.continuation[:-1] for _, request in rows], self.runner.device, left=False)
        # Padding stands where its row's last token does: farther positions may not exist.
        positions = branch.lengths[:, None] + own_mask.cumsum(1) - 1
        mask = torch.cat([branch.mask, own_mask], dim=1)
        logits = self.runner.forward(ids, mask=mask, positions=positions, cache=branch.cache)
        found.add_rest(logits, [request for _, request in rows])

    def _score_branches(self, questions: list[Question], prefix: Prefix) -> None:
        """`_score_continued` without a mask, and without a copy of a question's cache for each option."""
        prompts = [question[0].prompt for question in questions]
        next_logits, cache = self.runner.prefill_left_aligned(prompts, len(prefix), prefix.cache)
        found = TokenScores()
        requests = [(row, request) for row, question in enumerate(questions) for request in question]
        found.add_first(F.log_softmax(next_logits, dim=-1), requests)
        longer: dict[int, Question] = {}
        for row, request in requests:
            if len(request.continuation) > 1:
                longer.setdefault(row, []).append(request)
        budget = self._batch_tokens()
        for group in alike_in_length({row: (len(prompts[row]), len(options)) for row, options in longer.items()}):
            rows = [(row, request) for row in group for request in longer[row]]
            shortest = len(prompts[group[0]])
            columns = [len(request.prompt) + len(request.continuation) - 1 for _, request in rows]
            lengths = [tokens - shortest for tokens in columns]
            plan = plan_batches(lengths, columns, budget=budget, max_rows=MAX_QUESTIONS, max_tokens=self.positions)
            for batch in plan:
                chosen = [rows[index] for index in batch]
                branches = [(row, request.continuation[:-1]) for row, request in chosen]
                logits = run_branches(self.runner, prompts, cache, branches, note=self.budget.note_once)
                found.add_rest(logits, [request for _, request in chosen])
        self.scores.update(found.scores())

    def _score_whole(self, encoded: list[EncodedRequest]) -> None:
        """Without a cache: running text, and networks whose cache cannot be reused."""
        by_inputs: dict[Ids, Question] = {}
        for request in encoded:
            by_inputs.setdefault(request.inputs, []).append(request)
        limit = rotary_limit(self.network)

        def plan(questions: Sequence[Question], budget: int) -> Iterator[list[int]]:
            lengths = [_columns(question) for question in questions]
            # Where positions depend on the longest text of a batch, each text is a batch of its own.
            rows = MAX_WHOLE_ROWS if max(lengths) <= limit else 1
            return plan_batches(lengths, lengths, budget=min(budget, self.positions), max_rows=rows)

        self._run(list(by_inputs.values()), plan=plan, work=self._score_whole_batch)

    def _score_whole_batch(self, questions: list[Question]) -> None:
        inputs = [question[0].inputs for question in questions]
        ids = pad_ids(inputs, self.runner.device, left=False)
        # No token sees the padding behind it.
        needs_none = self.runner.needs_no_mask
        mask = torch.ones_like(ids) if needs_none else padding_mask(inputs, self.runner.device, left=False)
        positions = torch.arange(ids.shape[1], device=self.runner.device)[None].expand(len(ids), -1)
        rows = [(row, request) for row, question in enumerate(questions) for request in question]
        keep = range(min(len(request.inputs) - request.scored_tokens for _, request in rows), ids.shape[1])
        logits = self.runner.forward(ids, mask=mask, positions=positions, cache=None, keep=keep)
        found = TokenScores()
        found.add_whole(logits, rows, first_column=keep.start)
        self.scores.update(found.scores())


def _vocabulary(network: Any) -> int:
    return int(network.config.get_text_config(decoder=True).vocab_size)


def _columns(question: Question) -> int:
    """Tokens that the longest row of a question holds."""
    return len(question[0].prompt) + max(len(request.continuation) for request in question)
