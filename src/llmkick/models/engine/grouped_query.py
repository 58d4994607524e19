"""Masked grouped-query attention on CPUs and NVIDIA GPUs: the same sums from fewer and larger matrix products.

For grouped-query attention with a mask, transformers copies the keys and values once for each query head, and torch
converts the boolean mask into numbers, both in every layer. Here the queries of the heads that share a key head are
stacked in one product, and the mask is converted once a forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.attention import default_attention, is_plain

# The converted mask, for all query heads of a key head, is larger than the boolean one: beyond this size the default
# attention runs.
MASK_BYTES, MASK_BYTES_CUDA = 2**27, 2**30


class GroupedQueryAttention:
    """An attention function for the layers of one forward; it calls the default where grouping does not apply."""

    def __init__(self) -> None:
        # By the identity of the mask, which is stored too: while it is alive, no other object has its id.
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
        if attention_mask is None or not is_plain(dropout, options) or not _is_worthwhile(query, key, attention_mask):
            return default_attention(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        rows, heads, tokens, width = query.shape
        stacked = query.reshape(rows, key.shape[1], -1, width)
        mask = self._mask(attention_mask, heads // key.shape[1], query.dtype)
        output = F.scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None

    def _mask(self, mask: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
        cached = self._masks.get((id(mask), dtype))
        if cached is None:
            numbers = mask
            if mask.dtype == torch.bool:
                numbers = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
            cached = self._masks[id(mask), dtype] = mask, numbers.repeat(1, 1, shared, 1)
        return cached[1]


def _is_worthwhile(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether several query heads share a key head, for several tokens, under one mask for all heads."""
    most = {"cpu": MASK_BYTES, "cuda": MASK_BYTES_CUDA}.get(query.device.type, 0)
    shared = query.shape[1] // key.shape[1]
    size = mask.numel() * shared * query.element_size()
    several = shared > 1 and query.shape[2] > 1 and mask.dim() == 4 and mask.shape[1] == 1
    return several and size <= most
