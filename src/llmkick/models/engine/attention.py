"""Replaces the attention function that transformers calls `sdpa`, for the forwards of one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

AttentionFunction = Callable[..., tuple[Tensor, Any]]

# What makes attention more than a softmax of scaled products under a mask.
OTHER_OPTIONS = ("softcap", "position_bias", "output_attentions", "cache", "s_aux")


class _Replacement(threading.local):
    function: AttentionFunction | None = None


_replacement = _Replacement()


# The function that was registered as `sdpa`: transformers' own, or another library's.
_default: AttentionFunction = sdpa_attention_forward


def default_attention(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    """The function that was registered as `sdpa` before this module replaced it."""
    return _default(*arguments, **options)


def is_plain(dropout: float, options: dict[str, Any]) -> bool:
    """Whether a call asks for nothing but a softmax of scaled products under its mask."""
    return dropout == 0 and all(options.get(name) is None for name in OTHER_OPTIONS)


@contextmanager
def attention_replaced_by(function: AttentionFunction) -> Iterator[None]:
    """While this lasts, networks that this thread runs attend by `function` wherever they would by `sdpa`."""
    global _default
    # Registered once and left there: a thread that enters or leaves meanwhile does not change it for the others.
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not _attention:
        _default = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    before, _replacement.function = _replacement.function, function
    try:
        yield
    finally:
        _replacement.function = before


def _attention(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    return (_replacement.function or default_attention)(*arguments, **options)
