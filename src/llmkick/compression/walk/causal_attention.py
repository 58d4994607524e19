"""Causal attention of short windows on a CPU, in pieces of the queries: the same sums without the masked half.

torch's kernel processes 512 keys at a time, so for windows up to that length it computes the whole square and masks
half of it. Pieces of 64 queries, each with the keys up to its end, avoid most of the masked half. Longer windows gain
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PIECE = 64
LONGEST = 512


class CausalByPieces(TorchFunctionMode):
    """While this context lasts, F.scaled_dot_product_attention works in pieces where that is faster.

    All calls of torch functions pass through this mode, so use it for forwards, not for kernels with many small calls.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and is_short_and_causal(*args, **kwargs):
            return causal_by_pieces(*args, **kwargs)
        return func(*args, **kwargs)


def is_short_and_causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_options: Any,
) -> bool:
    """Whether this is plain causal self-attention on a CPU, longer than a piece and short enough to gain."""
    square = query.dim() >= 3 and query.shape[-2] == key.shape[-2] == value.shape[-2]
    plain = is_causal and attn_mask is None and dropout_p == 0 and square
    return plain and query.device.type == "cpu" and PIECE < query.shape[-2] <= LONGEST


def causal_by_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = True,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Causal attention: (…, heads, tokens, width) each → (…, heads, tokens, width)."""
    # Heads that share keys become additional queries of one head: fewer and taller matrix products.
    shared = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    *outer, heads, tokens, width = query.shape
    by_key = query.reshape(*outer, heads // shared, shared, tokens, width)
    places = torch.arange(tokens)
    pieces = []
    for start in range(0, len(places), PIECE):
        end = min(start + PIECE, len(places))
        visible = places[:end] <= places[start:end, None]
        piece = F.scaled_dot_product_attention(
            by_key[..., start:end, :].flatten(-3, -2),
            key[..., :end, :],
            value[..., :end, :],
            attn_mask=visible.repeat(shared, 1),
            scale=scale,
        )
        pieces.append(piece.reshape(*outer, heads, end - start, value.shape[-1]))
    return torch.cat(pieces, dim=-2)
