"""Prompts behind a shared prefix, packed end to end into one row: no padding is computed, and each attends alone.

Every layer but attention treats each token by itself, so a network can run the prompts of a group as one sequence.
Attention separates them: each prompt sees the prefix and its own tokens, in the columns it has when it runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.network import is_plain_sdpa

# Tokens of one forward: longer rows are no faster and take more memory.
MAX_PACKED_TOKENS = 2048


class UnsupportedAttentionError(Exception):
    """The attention of this network cannot be separated by prompt here."""


def can_pack_prompts(network: Any, device: torch.device) -> bool:
    """Whether packing can work and gain: on a CPU, with `sdpa` attention, every layer over the full context."""
    return device.type == "cpu" and is_plain_sdpa(network)


class AttentionByPrompt:
    """An attention function for the layers of one forward; `layers` counts them.

    prefix: columns that all prompts share, and begin with; lengths: the tokens of each beyond it.
    """

    def __init__(self, prefix: int, lengths: Sequence[int]) -> None:
        self.layers = 0
        self._prefix = prefix
        self._lengths = lengths
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        """Queries (1, heads, tokens, width), keys (1, key heads, prefix + tokens, width) → (1, tokens, heads, …).

        Raises UnsupportedAttentionError for attention that is more than a softmax of scaled products.
        """
        from llmkick.models.engine.attention import is_plain  # transformers takes long to import

        is_own = attention_mask is not None and attention_mask.dtype != torch.bool  # not a mask of transformers
        if not is_plain(dropout, options) or options.get("sliding_window") is not None or is_own:
            raise UnsupportedAttentionError(type(module).__name__)
        self.layers += 1
        heads, key_heads, prefix = query.shape[1], key.shape[1], self._prefix
        rows = heads // key_heads
        mask = self._causal(query, rows)
        columns = prefix + max(self._lengths)
        keys, values = (_with_room(states, prefix, columns) for states in (key, value))
        output = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        start = 0
        for length in self._lengths:
            tail, end = slice(prefix + start, prefix + start + length), prefix + length
            keys[:, :, prefix:end], values[:, :, prefix:end] = key[:, :, tail], value[:, :, tail]
            # The queries of the heads that share a key head are stacked.
            queries = query[0, :, start : start + length].reshape(key_heads, rows, length, -1)
            grouped = queries.transpose(1, 2).reshape(1, key_heads, rows * length, -1)
            seen = mask[: rows * length, :end]
            attended = F.scaled_dot_product_attention(
                grouped, keys[:, :, :end], values[:, :, :end], attn_mask=seen, scale=scaling
            )
            answered = attended.reshape(key_heads, length, rows, -1).transpose(0, 1)
            output[0, start : start + length] = answered.reshape(length, heads, -1)
            start += length
        return output, None

    def _causal(self, query: Tensor, shared: int) -> Tensor:
        """(longest · shared, prefix + longest): the first rows and columns of it are the mask of a shorter prompt."""
        key = shared, query.dtype
        if key not in self._masks:
            longest = max(self._lengths)
            hidden = torch.ones(longest, self._prefix + longest, dtype=torch.bool).triu(self._prefix + 1)
            numbers = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[key] = numbers.repeat_interleave(shared, dim=0)
        return self._masks[key]


def _with_room(states: Tensor, prefix: int, columns: int) -> Tensor:
    buffer = states.new_empty(1, states.shape[1], columns, states.shape[-1])
    buffer[:, :, :prefix] = states[:, :, :prefix]
    return buffer
