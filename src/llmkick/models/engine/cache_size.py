"""The memory that one token of a batch takes: its cached keys and values, measured, and its activations."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from llmkick.models.engine.network import device_of

_measured: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def cache_bytes_a_token(network: Any) -> int:
    """Bytes of keys and values of one token in all layers, as a forward of one token leaves them; 0 without a cache.

    The configuration does not tell: heads may differ between layers, layers may have no attention or share their keys,
    and latent attention caches other widths than it projects.
    """
    if network not in _measured:
        _measured[network] = _measure(network)
    return _measured[network]


def _measure(network: Any) -> int:
    with torch.inference_mode():
        output = network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device_of(network)), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    layers = getattr(cache, "layers", ())
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def bytes_a_token(network: Any) -> int:
    """The most bytes that one token of a batch takes.

    Its keys and values twice (a cache is copied while rows are selected), and a block's activations: a dozen
    vectors of the model's width, four of the inner width (four times the width where none is named).
    """
    config = network.config.get_text_config(decoder=True)
    width = _stated(config, "hidden_size") or network.get_input_embeddings().weight.shape[1]
    inner = _stated(config, "intermediate_size")
    inner = inner if isinstance(inner, int) else max(4 * width, *inner) if inner else 4 * width
    return int(2 * cache_bytes_a_token(network) + (12 * width + 4 * inner) * network.dtype.itemsize)


def _stated(config: Any, name: str) -> Any:
    """An entry of a configuration; None where it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # transformers' error for an entry that differs between layers
        return None
