"""Batching of requests: groups with a shared prefix, and batches of similar length within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Below this many shared tokens, a forward for the prefix alone costs more than it saves.
MIN_SHARED_TOKENS = 16
# The fixed cost of a forward, in tokens of work; measured on a CPU, and less than on a GPU.
FORWARD_COST_TOKENS = 64

Ids = tuple[int, ...]


def common_prefix_length(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, leaving each at least one token after them."""
    first, last = min(prompts), max(prompts)  # lexicographic extremes share what all share
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = 0
    while shared < min(limit, len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return max(0, shared)


def group_by_prefix(prompts: Sequence[Ids]) -> list[tuple[list[int], int]]:
    """Split prompts into groups that share a prefix: (indices, shared tokens) a group.

    Neighbours (in token order) that share at least half of their tokens, such as the questions of a subject, become
    a group where this saves more tokens, beyond those that all prompts share, than its two forwards cost: one for
    the prefix, one for the questions. All other prompts are the last group.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    runs: list[list[int]] = []
    for index in order:
        previous = runs[-1][-1] if runs else None
        if previous is not None and 2 * _shared(prompts[previous], prompts[index]) >= len(prompts[index]):
            runs[-1].append(index)
        else:
            runs.append([index])
    common = common_prefix(prompts)
    groups: list[tuple[list[int], int]] = []
    rest: list[int] = []
    for run in runs:
        shared = common_prefix([prompts[index] for index in run])
        if (len(run) - 1) * (shared - common) > 2 * FORWARD_COST_TOKENS:
            groups.append((run, shared))
        else:
            rest += run
    return [*groups, (rest, common)] if rest else groups


def common_prefix(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with; 0 where these are too few for a forward of their own."""
    shared = common_prefix_length(prompts) if len(prompts) > 1 else 0
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _shared(left: Ids, right: Ids) -> int:
    shared = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def plan_batches(
    lengths: Sequence[int], columns: Sequence[int], *, budget: int, max_rows: int, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Indices in batches, longest first.

    lengths: tokens that each row runs; columns: tokens that each row holds. A batch ends where the next row
    would exceed `max_rows`, or `budget` (rows × most columns), or `max_tokens` (rows × longest length), or
    where padding all its rows to the longest would cost more than another forward.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], -columns[index], index))
    batch: list[int] = []
    padding = widest = 0
    for index in order:
        rows = len(batch) + 1
        longest = lengths[batch[0]] if batch else lengths[index]
        padding += longest - lengths[index]
        widest = max(widest, columns[index])
        fits = rows * widest <= budget and (max_tokens is None or rows * longest <= max_tokens)
        if batch and not (fits and rows <= max_rows and padding <= FORWARD_COST_TOKENS):
            yield batch
            batch, padding, widest = [], 0, columns[index]
        batch.append(index)
    if batch:
        yield batch


def plan_packed_rows(lengths: Sequence[int], *, most: int) -> Iterator[list[int]]:
    """Indices, in order, in rows of at most `most` tokens end to end; a row holds at least one prompt."""
    row: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if row and tokens + length > most:
            yield row
            row, tokens = [], 0
        row.append(index)
        tokens += length
    if row:
        yield row
