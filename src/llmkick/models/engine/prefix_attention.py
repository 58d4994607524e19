"""Causal attention of tokens that continue a prefix, without a mask: NVIDIA GPUs have kernels for exactly that.

A mask, even one that hides nothing but the future, keeps torch from flash attention. Rows with padding behind their
tokens need none: what stands behind a token is hidden from it anyway.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from llmkick.models.engine.attention import default_attention, is_plain


class CausalBehindPrefix:
    """An attention function for the layers of one forward; it calls the default where attention is not plain."""

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
        """Queries (rows, heads, tokens, width), keys (rows, key heads, columns, width) → (rows, tokens, heads, …).

        The queries are those of the last `tokens` columns.
        """
        if not is_plain(dropout, options) or options.get("sliding_window") is not None:
            return default_attention(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        seen = causal_lower_right(query.shape[2], key.shape[2])
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=grouped)
        return output.transpose(1, 2).contiguous(), None
