"""Prompts behind one prefix, end to end in a single row: no padding is multiplied, and each attends alone.

Everything but attention treats a token for itself, so a network may be given the prompts of a group one after another.
Attention takes them apart: each sees the prefix and its own tokens, in the columns they have when it runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Of one forward: larger ones gain nothing, and hold more at once.
MOST_TOKENS = 2048


class UnsuitedError(Exception):
    """This network's attention is not the one that can be taken apart here."""


def may_run_unpadded(network: Any, device: torch.device) -> bool:
    """Whether it is worth trying: on a CPU, attention by `sdpa`, and every layer sees all that came before."""
    config = network.config.get_text_config(decoder=True)
    windows = getattr(config, "sliding_window", None) is not None or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    return device.type == "cpu" and getattr(config, "_attn_implementation", "") == "sdpa" and not windows


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

        Raises UnsuitedError for attention that is more than a softmax of scaled products.
        """
        from llmkick.models.engine.attention import is_plain  # transformers takes long to import

        if not is_plain(dropout, options) or options.get("sliding_window") is not None:
            raise UnsuitedError(type(module).__name__)
        self.layers += 1
        heads, key_heads, prefix = query.shape[1], key.shape[1], self._prefix
        rows = heads // key_heads
        mask = self._causal(query, rows)
        columns = prefix + max(self._lengths)
        keys, values = (_room(states, prefix, columns) for states in (key, value))
        output = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        start = 0
        for length in self._lengths:
            own, end = slice(prefix + start, prefix + start + length), prefix + length
            keys[:, :, prefix:end], values[:, :, prefix:end] = key[:, :, own], value[:, :, own]
            # The queries of a token's heads that share a key head stand below each other.
            asking = query[0, :, start : start + length].reshape(key_heads, rows, length, -1)
            grouped = asking.transpose(1, 2).reshape(1, key_heads, rows * length, -1)
            seen = mask[: rows * length, :end]
            found = F.scaled_dot_product_attention(
                grouped, keys[:, :, :end], values[:, :, :end], attn_mask=seen, scale=scaling
            )
            answered = found.reshape(key_heads, length, rows, -1).transpose(0, 1)
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


def _room(states: Tensor, prefix: int, columns: int) -> Tensor:
    buffer = states.new_empty(1, states.shape[1], columns, states.shape[-1])
    buffer[:, :, :prefix] = states[:, :, :prefix]
    return buffer
