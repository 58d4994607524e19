"""Greedy decoding in batches: prompts run once, and waiting rows take the places of finished ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmkick.models.engine.answers import Answers, Row, rows_of
from llmkick.models.engine.batch_budget import BatchBudget
from llmkick.models.engine.batches import plan_batches
from llmkick.models.engine.fixed_steps import WORTHWHILE_STEPS, FixedSteps, can_fix_steps
from llmkick.models.engine.kv_cache import can_reuse_cache
from llmkick.models.engine.network import device_of, end_tokens_of, max_tokens_of, vocabulary_of
from llmkick.models.engine.prefilled import Prefilled, join_states
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.engine.runner import Prefix, Runner, prefix_groups, read
from llmkick.models.finite import finite_rows
from llmkick.models.language_model import GenerateRequest, Generation, Unanswered
from llmkick.models.memory import attempt

MAX_ROWS = 64
# Cutting the cache takes about as long as a decoding step: it is worth it once a quarter of the rows are done.
KEEP_SHARE = 0.75
# Ordinary steps of the same rows before their steps are fixed.
SETTLED_STEPS = 8
# Columns that are allocated for tokens to come; a long thought allocates so many again and again.
MOST_ROOM = 512


def generate_requests(
    requests: Sequence[GenerateRequest], *, network: Any, encoder: PromptEncoder, budget: BatchBudget
) -> list[Generation | Unanswered]:
    """One generation for each request, in the order of `requests`.

    The outcome is Unanswered for requests without a prompt, without room for their answer in the network's
    context, with token ids outside its vocabulary, or too large for the memory even alone.
    """
    vocabulary, context = vocabulary_of(network), max_tokens_of(network)
    answers = Answers(encoder, end_tokens_of(network, encoder.tokenizer))
    rows = rows_of(requests, encoder, vocabulary=vocabulary, context=context)
    with torch.inference_mode():
        _generate([row for row in rows if row.outcome is None], network, answers, budget)
    return [row.outcome if row.outcome is not None else answers.finished(row, "length") for row in rows]


def _generate(rows: list[Row], network: Any, answers: Answers, budget: BatchBudget) -> None:
    if not rows:
        return
    # A batch holds its longest prompt beside its longest answer, not always of the same request.
    columns = max(len(row.prompt) for row in rows) + max(row.most_new for row in rows)
    runner = Runner(network, device_of(network), reusable=can_reuse_cache(network, columns))
    if not runner.takes_cache:
        for row in rows:
            _decode_whole(runner, answers, row)
        return
    budget.fit(network, runner.device, sum(row.columns for row in rows), decoding=True)
    queue: list[Row] = []
    one_group = [(list(range(len(rows))), Prefix(runner, ()))]
    for indices, prefix in prefix_groups(runner, [row.prompt for row in rows]) if runner.reusable else one_group:
        # Longest first, so that a batch never has to hold more columns than when it began.
        for index in sorted(indices, key=lambda index: (-rows[index].columns, index)):
            rows[index].prefix = prefix
            queue.append(rows[index])
    _Decoder(runner, answers, budget, queue).run()


class _Decoder:
    """Answers a queue of rows. `active` are the rows of `state`, in its order; some of them may be finished."""

    def __init__(self, runner: Runner, answers: Answers, budget: BatchBudget, queue: Sequence[Row]) -> None:
        self.runner = runner
        self.answers = answers
        self.budget = budget
        self.waiting = deque(queue)
        self.active: list[Row] = []
        self.state: Prefilled | None = None
        self.fixed: FixedSteps | None = None  # what takes the steps of `state`, if not the runner
        self.unchanged = 0  # ordinary steps since rows entered or left

    def run(self) -> None:
        """Decode until every row has its outcome."""
        while self.waiting or self.active:
            shortage = attempt(self._advance)
            if shortage is not None:
                self._retreat(shortage)

    def _advance(self) -> None:
        """Admit waiting rows, then add a token to every active row."""
        self._admit()
        assert self.state is not None, "a row was waiting, or active"
        chosen = self.state.next_logits.argmax(-1)
        read_once = read(torch.stack([chosen, finite_rows(self.state.next_logits).long()])).tolist()
        for row, token, is_finite in zip(self.active, *read_once, strict=True):
            if row.outcome is None:
                self.answers.append(row, token, is_finite=bool(is_finite))
            if row.outcome is not None:
                row.prefix = None  # the last row of a prefix frees its cache
        alive = [index for index, row in enumerate(self.active) if row.outcome is None]
        if not alive:
            self._unfix()
            self.active, self.state = [], None
            return
        if len(alive) <= KEEP_SHARE * len(self.active):
            kept = torch.tensor(alive, device=self.runner.device)
            self._unfix()
            self.active = [self.active[index] for index in alive]
            self.state, chosen = self.state.select(kept, room=_room(self.active)), chosen[kept]
        self._step(self.state, chosen[:, None])

    def _step(self, state: Prefilled, tokens: Tensor) -> None:
        if self.fixed is not None and self.fixed.is_full:
            self._unfix()
            state.reserve(_room(self.active))
        if self.fixed is not None:
            self.fixed.step(state, tokens)
            return
        self.runner.step(state, tokens)
        self.unchanged += 1
        # Answers may end long before their limit: rows that stay together for some steps are likely to stay longer.
        if self.unchanged >= SETTLED_STEPS and self._fixes_steps and _room(self.active) >= WORTHWHILE_STEPS:
            self.fixed = FixedSteps.of(self.runner, state, tokens, self.budget.notes)

    @property
    def _fixes_steps(self) -> bool:
        return self.runner.reusable and can_fix_steps(self.runner.network, self.runner.device)

    def _unfix(self) -> None:
        """End the fixed steps, before the rows or the buffers of the batch change."""
        self.unchanged = 0
        if self.fixed is not None:
            self.fixed.end()
            self.fixed = None

    def _admit(self) -> None:
        """Prefill waiting rows into free places, once they are a quarter of the batch: a forward has a fixed cost."""
        new = self._admissible()
        worthwhile = min(len(self.waiting), (1 - KEEP_SHARE) * len(self.active))
        if not new or len(new) < worthwhile:
            return
        self._unfix()
        states = [] if self.state is None else [self.state]
        rows = [row for row in self.active if row.outcome is None]
        keep = [index for index, row in enumerate(self.active) if row.outcome is None]
        for batch in self._prefills(new):
            prefix = batch[0].prefix
            assert prefix is not None, "every queued row has a prefix, if an empty one"
            state = self.runner.prefill([row.text for row in batch], len(prefix), prefix.cache)
            # The last token of a row is never run, and so its place is never needed.
            state.last = torch.tensor([row.columns - 2 for row in batch], device=self.runner.device)
            states.append(state)
            rows += batch
        if len(states) > 1:
            chosen = [torch.arange(len(state.lengths), device=self.runner.device) for state in states]
            if self.state is not None:
                chosen[0] = torch.tensor(keep, dtype=torch.long, device=self.runner.device)
            self.state = join_states(states, chosen, room=_room(rows))
        else:
            self.state = states[0]
            self.state.reserve(_room(rows))
        self.active = rows
        for _ in new:
            self.waiting.popleft()

    def _admissible(self) -> list[Row]:
        """The first rows of the queue that fit beside the active rows."""
        budget = self.budget.tokens(self.runner.network, self.runner.device, decoding=True)
        most = MAX_ROWS if self.runner.reusable else 1  # a cache that cannot be padded or cut holds one row
        inside = [row.columns for row in self.active if row.outcome is None]
        rows, widest, new = len(inside), max(inside, default=0), list[Row]()
        for row in self.waiting:
            rows, widest = rows + 1, max(widest, row.columns)
            if rows > 1 and (rows > most or rows * widest > budget):
                break
            new.append(row)
        return new

    def _prefills(self, new: list[Row]) -> list[list[Row]]:
        """Batches of rows with the same prefix and similar length."""
        by_prefix: dict[Prefix | None, list[Row]] = {}
        for row in new:
            by_prefix.setdefault(row.prefix, []).append(row)
        batches = []
        for prefix, rows in by_prefix.items():
            lengths = [len(row.text) - len(prefix or ()) for row in rows]
            plan = plan_batches(lengths, lengths, budget=sum(lengths) * len(lengths), max_rows=len(rows))
            batches += [[rows[index] for index in batch] for batch in plan]
        return batches

    def _retreat(self, shortage: str) -> None:
        """After a shortage: active rows keep their tokens and go back to the queue, and the budget shrinks."""
        back = [row for row in self.active if row.outcome is None]
        self._unfix()
        self.active, self.state = [], None
        self.waiting.extendleft(reversed(back))
        first = self.waiting[0] if self.waiting else None
        if first is None:
            return
        budget = self.budget.tokens(self.runner.network, self.runner.device, decoding=True)
        if budget <= first.columns:  # it was alone
            self.waiting.popleft()
            reason = f"the memory of {self.runner.device} does not hold its {first.columns} tokens"
            first.outcome = Unanswered(reason=reason)
        else:
            self.budget.shrink(self.runner.network, self.runner.device, shortage, decoding=True)


def _room(rows: Sequence[Row]) -> int:
    """Columns for the tokens that these rows may still get."""
    return min(MOST_ROOM, max(row.most_new - len(row.tokens) for row in rows))


def _decode_whole(runner: Runner, answers: Answers, row: Row) -> None:
    """Append greedy tokens, running the whole text for each: for networks that keep their state in their own way."""
    while row.outcome is None:
        logits = runner.next_logits(torch.tensor([row.text], device=runner.device))
        token, is_finite = read(torch.cat([logits.argmax(-1), finite_rows(logits).long()])).tolist()
        answers.append(row, token, is_finite=bool(is_finite))
