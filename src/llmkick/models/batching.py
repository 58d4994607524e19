"""What scoring and generation share: which prompts run together, and running them once into a cache."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bumped whenever the engine could answer differently: it is part of every run key.
ENGINE_VERSION = 1

# Below this many shared tokens, running a prefix apart costs more than it saves.
MIN_SHARED_TOKENS = 16
# What one more forward costs, in tokens of work; measured on CPU, smaller than the truth on a GPU.
FORWARD_COST_TOKENS = 64

Ids = tuple[int, ...]


@dataclass
class Prefilled:
    """A batch of prompts that have run: the state from which each row goes on.

    next_logits: (rows, vocabulary) float32, after the last prompt token; cache: keys and values;
    mask: (rows, cached tokens) 1 where a cached token is real; lengths: (rows,) real tokens a row.
    """

    next_logits: Tensor
    cache: Any
    mask: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows, in this order."""
        self.next_logits = self.next_logits[rows]
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.lengths = self.lengths[rows]


def token_budget(network: Any, device: torch.device) -> int:
    """How many cached tokens a batch may hold: fixed on CPU, from free memory on CUDA (a power of two)."""
    if device.type != "cuda":
        return 8192
    config = network.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_a_token = 2 * config.num_hidden_layers * heads * width * network.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(device)
    affordable = int(0.3 * free / bytes_a_token)
    return max(1024, min(65536, 1 << max(0, affordable.bit_length() - 1)))


def can_reuse_cache(network: Any, columns: int) -> bool:
    """Whether keys and values of this network may be padded, repeated and continued without error.

    Recurrent states cannot be cut; a network that takes no positions, or attends in a sliding window, counts
    padding as distance. Such networks (the last kind only when the `columns` of a padded batch may exceed
    their window) run every request whole.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    accepted = inspect.signature(network.forward).parameters
    if getattr(network, "_is_stateful", False) or not {"position_ids", "past_key_values"} <= accepted.keys():
        return False
    config = network.config.get_text_config(decoder=True)
    # GPT-Neo's windows are its own affair: the cache knows nothing of them.
    if "local" in getattr(config, "attention_layers", ()) and columns >= config.window_size:
        return False
    for layer in DynamicCache(config=config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            if columns >= layer.sliding_window:
                return False
        elif type(layer) is not DynamicLayer:
            return False
    return True


def common_prefix_length(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts begin with, leaving each at least one token of its own."""
    first, last = min(prompts), max(prompts)  # lexicographic extremes share what all share
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = 0
    while shared < min(limit, len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return max(0, shared)


def group_by_prefix(prompts: Sequence[Ids]) -> list[tuple[list[int], int]]:
    """Split prompts into groups that share a prefix: (indices, shared tokens) a group.

    One group for all, or one for each run of neighbours (in token order) that share at least half of
    their tokens, whichever leaves fewer tokens to run.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    runs: list[list[int]] = []
    for index in order:
        previous = runs[-1][-1] if runs else None
        if previous is not None and 2 * _shared(prompts[previous], prompts[index]) >= len(prompts[index]):
            runs[-1].append(index)
        else:
            runs.append([index])
    together, apart = [_with_prefix(order, prompts)], [_with_prefix(run, prompts) for run in runs]
    return min((together, apart), key=lambda groups: _tokens_to_run(groups, prompts))


def _shared(left: Ids, right: Ids) -> int:
    shared = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _with_prefix(indices: list[int], prompts: Sequence[Ids]) -> tuple[list[int], int]:
    if len(indices) < 2:
        return indices, 0
    shared = common_prefix_length([prompts[index] for index in indices])
    return indices, shared if shared >= MIN_SHARED_TOKENS else 0


def _tokens_to_run(groups: list[tuple[list[int], int]], prompts: Sequence[Ids]) -> int:
    return sum(
        shared + FORWARD_COST_TOKENS + sum(len(prompts[index]) - shared for index in indices)
        for indices, shared in groups
    )


def budget_batches(costs: Sequence[int], budget: int, max_rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar cost: longest first, rows × longest cost within `budget`."""
    order = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    start = 0
    while start < len(order):
        rows = max(1, min(max_rows, budget // max(1, costs[order[start]])))
        yield order[start : start + rows]
        start += rows


class Runner:
    """Calls a network with explicit masks and positions, whatever its signature."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self.network = network
        self.device = device
        accepted = inspect.signature(network.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        supports = getattr(network, "_supports_default_dynamic_cache", lambda: True)
        self.takes_cache: bool = "past_key_values" in accepted and supports()

    def new_cache(self) -> Any:
        """An empty cache of the kind the network wants."""
        from transformers import DynamicCache

        return DynamicCache(config=self.network.config.get_text_config(decoder=True))

    def forward(self, ids: Tensor, *, mask: Tensor, positions: Tensor, cache: Any, keep_last: bool) -> Tensor:
        """Logits (rows, tokens or 1, vocabulary) in the network's dtype; `cache` grows in place."""
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = positions
        if keep_last and self._takes_keep:
            # An index, not the number 1: the slice that 1 makes is not contiguous, and torch then copies the
            # output head once a row (3 of 4 seconds for 64 rows of 22 tokens, measured).
            extra["logits_to_keep"] = torch.tensor([ids.shape[1] - 1], device=self.device)
        if self.takes_cache:
            extra["past_key_values"] = cache
        output = self.network(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **extra)
        logits: Tensor = output.logits
        return logits[:, -1:] if keep_last else logits

    def next_logits(self, ids: Tensor) -> Tensor:
        """Float32 logits after the last token of unpadded rows, run whole: (rows, tokens) → (rows, vocabulary)."""
        positions = torch.arange(ids.shape[1], device=self.device)[None].expand(len(ids), -1)
        logits = self.forward(ids, mask=torch.ones_like(ids), positions=positions, cache=None, keep_last=True)
        return logits[:, -1].float()

    def run_prefix(self, prefix: Ids) -> Any:
        """The cache of one row holding `prefix`."""
        cache = self.new_cache()
        ids = torch.tensor([prefix], device=self.device)
        positions = torch.arange(len(prefix), device=self.device)[None]
        self.forward(ids, mask=torch.ones_like(ids), positions=positions, cache=cache, keep_last=True)
        return cache

    def prefill(self, prompts: Sequence[Ids], prefix: int, prefix_cache: Any) -> Prefilled:
        """Run prompts whose first `prefix` tokens are already in `prefix_cache` (one row, left untouched)."""
        rows = len(prompts)
        cache = self.new_cache()
        if prefix:
            cache = copy.deepcopy(prefix_cache)
            cache.batch_repeat_interleave(rows)
        # Left padding: every row ends in the same column, so one logit column serves all.
        ids, own_mask = pad([prompt[prefix:] for prompt in prompts], self.device, left=True)
        mask = torch.cat([torch.ones(rows, prefix, dtype=own_mask.dtype, device=self.device), own_mask], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, prefix:]
        logits = self.forward(ids, mask=mask, positions=positions, cache=cache, keep_last=True)
        return Prefilled(next_logits=logits[:, -1].float(), cache=cache, mask=mask, lengths=mask.sum(1))

    def step(self, state: Prefilled, tokens: Tensor) -> None:
        """Go on from `state` with one more token for each row: (rows, 1)."""
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        positions = state.lengths[:, None]
        logits = self.forward(tokens, mask=state.mask, positions=positions, cache=state.cache, keep_last=True)
        state.next_logits, state.lengths = logits[:, -1].float(), state.lengths + 1


def pad(rows: Sequence[Ids], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of unequal length → ids and mask, both (rows, longest). Padding is id 0 under mask 0."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        span = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[index, span] = torch.tensor(row, dtype=torch.long)
        mask[index, span] = 1
    return ids.to(device), mask.to(device)
