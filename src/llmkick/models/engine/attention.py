"""Another attention function for transformers' `sdpa`, for the forwards of one thread."""

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


class _Chosen(threading.local):
    function: AttentionFunction | None = None


_chosen = _Chosen()


_usual: AttentionFunction = sdpa_attention_forward


def usual_attention(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    """The function that stands under this name but for us."""
    return _usual(*arguments, **options)


def is_plain(dropout: float, options: dict[str, Any]) -> bool:
    """Whether a call asks for nothing but a softmax of scaled products under its mask."""
    return dropout == 0 and all(options.get(name) is None for name in OTHER_OPTIONS)


@contextmanager
def attention_by(function: AttentionFunction) -> Iterator[None]:
    """While this lasts, what this thread runs attends by `function` wherever it would by `sdpa`."""
    global _usual
    # Put there once and left there: who comes and goes meanwhile, in whatever thread, meets the same function.
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not _attention:
        _usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    before, _chosen.function = _chosen.function, function
    try:
        yield
    finally:
        _chosen.function = before


def _attention(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
    return (_chosen.function or usual_attention)(*arguments, **options)
