"""Masked attention of query heads that share keys, on a CPU: the same sums from fewer and larger products.

For grouped-query attention with a mask transformers copies the keys and values once for each query head, and torch
makes numbers of a mask of booleans, both in every layer. Here the queries of heads that share a key head stand below
each other in one product, and the mask is made once a forward. For 14 × 100 tokens behind 400, 9 heads on 3, bfloat16
and two threads: 13.3 ms a layer instead of 17.5; 38.9 instead of 44.0 for 4 × 300 behind 1,700.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.attention import is_plain, usual_attention

# A mask of numbers for all query heads of a key head is larger than the one of booleans: beyond this the usual way.
MASK_BYTES = 2**27


class AttentionByKeyHead:
    """An attention function for the layers of one forward, that takes the usual way wherever it must."""

    def __init__(self) -> None:
        # By identity, with the mask itself: kept alive, its identity is nobody else's.
        self._masks: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

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
        """Queries (rows, heads, tokens, width), keys (rows, key heads, columns, width) → (rows, tokens, heads, …)."""
        if attention_mask is None or not is_plain(dropout, options) or not _gains(query, key, attention_mask):
            return usual_attention(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        rows, heads, tokens, width = query.shape
        below = query.reshape(rows, key.shape[1], -1, width)
        mask = self._mask(attention_mask, heads // key.shape[1], query.dtype)
        output = F.scaled_dot_product_attention(below, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None

    def _mask(self, mask: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
        known = self._masks.get((id(mask), dtype))
        if known is None:
            numbers = mask
            if mask.dtype == torch.bool:
                numbers = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
            known = self._masks[id(mask), dtype] = mask, numbers.repeat(1, 1, shared, 1)
        return known[1]


def _gains(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether several heads share keys, for several tokens, on a CPU, and the mask is one for all of them."""
    shared = query.shape[1] // key.shape[1]
    size = mask.numel() * shared * query.element_size()
    several = shared > 1 and query.shape[2] > 1 and mask.dim() == 4 and mask.shape[1] == 1
    return several and query.device.type == "cpu" and size <= MASK_BYTES
