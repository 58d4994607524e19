"""Greedy decoding in batches: prompts run once, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from llmkick.models.batching import (
    Ids,
    Prefilled,
    Runner,
    budget_batches,
    can_reuse_cache,
    group_by_prefix,
    token_budget,
)
from llmkick.models.language_model import GenerateRequest, Generation, TransformersModel, Unanswered

MAX_ROWS = 64
# Cutting the cache costs about one step: worth it only once a quarter of the rows are done.
KEEP_SHARE = 0.75


@dataclass
class Row:
    """One request while it is being answered."""

    index: int
    request: GenerateRequest
    prompt: Ids
    tokens: list[int] = field(default_factory=list)
    outcome: Generation | Unanswered | None = None


def generate_requests(model: TransformersModel, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
    """One generation a request, in the order of `requests`."""
    rows = []
    for index, request in enumerate(requests):
        row = Row(index=index, request=request, prompt=tuple(model.encode(request.prompt)))
        total = len(row.prompt) + request.max_new_tokens
        if not row.prompt:
            row.outcome = Unanswered(reason="the prompt is empty")
        elif total > model.max_tokens:
            row.outcome = Unanswered(
                reason=f"a prompt of {len(row.prompt)} tokens leaves no room for {request.max_new_tokens} new "
                f"tokens in a context of {model.max_tokens}"
            )
        rows.append(row)
    with torch.inference_mode():
        _generate(model, [row for row in rows if row.outcome is None])
    return [row.outcome if row.outcome is not None else _finish(model, row, "length") for row in rows]


def _generate(model: TransformersModel, rows: list[Row]) -> None:
    if not rows:
        return
    runner = Runner(model.network, model.device)
    if not runner.takes_cache:
        for row in rows:
            _decode_whole(model, runner, row)
        return
    budget = token_budget(model.network, model.device)
    # A batch holds its longest prompt beside its longest answer, not always of the same request.
    columns = max(len(row.prompt) for row in rows) + max(row.request.max_new_tokens for row in rows)
    reuse = can_reuse_cache(model.network, columns)
    groups = group_by_prefix([row.prompt for row in rows]) if reuse else [(list(range(len(rows))), 0)]
    for indices, shared in groups:
        prefix_cache = runner.run_prefix(rows[indices[0]].prompt[:shared]) if shared else None
        members = [rows[index] for index in indices]
        costs = [len(row.prompt) + row.request.max_new_tokens for row in members]
        # A cache that cannot be padded or cut is decoded one row at a time.
        for batch in budget_batches(costs, budget, max_rows=MAX_ROWS if reuse else 1):
            active = [members[index] for index in batch]
            state = runner.prefill([row.prompt for row in active], shared, prefix_cache)
            _decode(model, runner, active, state)


def _decode(model: TransformersModel, runner: Runner, rows: list[Row], state: Prefilled) -> None:
    """Append greedy tokens until every row is done."""
    while True:
        chosen = state.next_logits.argmax(-1)
        finite = torch.isfinite(state.next_logits).all(-1).tolist()
        for row, token, is_finite in zip(rows, chosen.tolist(), finite, strict=True):
            if row.outcome is None:
                _append(model, row, token, is_finite=is_finite)
        alive = [index for index, row in enumerate(rows) if row.outcome is None]
        if not alive:
            return
        if len(alive) <= KEEP_SHARE * len(rows):
            kept = torch.tensor(alive, device=runner.device)
            state.select(kept)
            chosen, rows = chosen[kept], [rows[index] for index in alive]
        runner.step(state, chosen[:, None])


def _decode_whole(model: TransformersModel, runner: Runner, row: Row) -> None:
    """Append greedy tokens, running the whole text for each: for networks that keep their state in their own way."""
    while row.outcome is None:
        logits = runner.next_logits(torch.tensor([[*row.prompt, *row.tokens]], device=runner.device))
        _append(model, row, int(logits.argmax()), is_finite=bool(torch.isfinite(logits).all()))


def _append(model: TransformersModel, row: Row, token: int, *, is_finite: bool) -> None:
    if not is_finite:
        row.outcome = Unanswered(reason="the model's output is NaN or Inf")
    elif token in model.end_tokens:
        row.outcome = _finish(model, row, "end")
    else:
        row.tokens.append(token)
        if row.request.stops and _first_stop(_text(model, row.tokens), row.request.stops) is not None:
            row.outcome = _finish(model, row, "stop")
        elif len(row.tokens) >= row.request.max_new_tokens:
            row.outcome = _finish(model, row, "length")


def _text(model: TransformersModel, tokens: list[int]) -> str:
    tokenizer: Any = model.tokenizer
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _finish(model: TransformersModel, row: Row, finish: str) -> Generation:
    text = _text(model, row.tokens)
    return Generation(text=text[: _first_stop(text, row.request.stops)], tokens=len(row.tokens), finish=finish)


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, None when there is none.

    One that is part of the leading whitespace does not count: an answer that begins with a blank line is
    not empty.
    """
    leading = len(text) - len(text.lstrip())
    found = [text.find(stop, max(0, leading - len(stop) + 1)) for stop in stops]
    return min((place for place in found if place >= 0), default=None)
