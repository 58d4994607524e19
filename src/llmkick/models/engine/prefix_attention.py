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

from llmkick.models.engine.attention import is_plain
from llmkick.models.engine.grouped_query import GroupedQueryAttention
from llmkick.models.engine.network import attends_to_all_tokens


class CausalBehindPrefix:
    """An attention function for the layers of one forward.

    Where attention is not plain, or no such kernel is there, it attends under the mask as other forwards do. So it does
    unless the network's configuration names no window, or the layer says that it has none: a mask may hold one.
    """

    def __init__(self, network: Any) -> None:
        self._attends_to_all = attends_to_all_tokens(network)
        self._under_mask = GroupedQueryAttention()

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
        grouped = query.shape[1] != key.shape[1]
        # A layer that does not name its window may have it in the mask.
        may_be_in_mask = not self._attends_to_all and attention_mask is not None and "sliding_window" not in options
        has_no_window = options.get("sliding_window") is None and not may_be_in_mask
        # The masks of transformers are boolean; numbers are a layer's own.
        is_own = attention_mask is not None and attention_mask.dtype != torch.bool
        is_causal = is_plain(dropout, options) and has_no_window and not is_own
        if not is_causal or (grouped and not _takes_groups(query, key, value)):
            return self._under_mask(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        seen = causal_lower_right(query.shape[2], key.shape[2])
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=grouped)
        return output.transpose(1, 2).contiguous(), None


def _takes_groups(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether query heads may share key heads without a mask: flash attention takes them, the other kernels do not."""
    if query.device.type != "cuda":
        return True
    parameters = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, True)
    return bool(torch.backends.cuda.can_use_flash_attention(parameters))
