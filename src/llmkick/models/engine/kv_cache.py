"""Keys and values in buffers with room: what a batch has seen, cut, repeated, joined and continued.

Rows are right-aligned: padding stands only to the left of a row's first token, never between two of its tokens.
A distance in columns is then a distance in tokens, which sliding windows count on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Columns that a full buffer grows by. torch.cat, which transformers uses, copies the whole cache for every token.
GROWTH = 32


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, each (rows, heads, columns, width); new columns are written in place."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, ...] = ()
        self._columns = 0

    def fill(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Take these buffers, of which the first `columns` are in use."""
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._buffers, self._columns = (keys, values), columns
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; all keys and all values."""
        start, end = self._columns, self._columns + key_states.shape[-2]
        keys, values = self._buffers or (key_states, value_states)
        if keys.shape[-2] < end:
            keys, values = (_grown(buffer, start, end + GROWTH) for buffer in (keys, values))
        if self._buffers:
            keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.fill(keys, values, end)
        return keys[:, :, :end], values[:, :, :end]


def _grown(buffer: Tensor, used: int, columns: int) -> Tensor:
    grown = buffer.new_empty(*buffer.shape[:2], columns, buffer.shape[-1])
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def can_reuse_cache(network: Any, columns: int) -> bool:
    """Whether keys and values of this network may be padded, repeated and continued without error.

    Recurrent states cannot be cut, and a network that takes no positions counts padding as tokens. A network that
    attends in chunks, or stretches its rotary positions with the longest text of a batch, is safe only while the
    `columns` of a batch stay within its first chunk or its original length. Others run every request whole.
    """
    accepted = inspect.signature(network.forward).parameters
    if getattr(network, "_is_stateful", False) or not {"position_ids", "past_key_values"} <= accepted.keys():
        return False
    config = network.config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()) and columns > config.attention_chunk_size:
        return False
    if columns > stretched_beyond(network):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def stretched_beyond(network: Any) -> float:
    """The length up to which a token's rotary position does not depend on how long the text is."""
    config = network.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    # One description for all layers, or one for each type of layer.
    kinds = [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, dict)]
    limits = [
        one.get("original_max_position_embeddings") or config.max_position_embeddings
        for one in kinds
        if one.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=float("inf"))


def empty_cache() -> Any:
    """A cache that keeps every column of every layer, in roomy layers."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = RoomyLayer
    return cache


def repeated(prefix: Any, shifts: Tensor, room: int) -> Any:
    """The one row of `prefix` once for each of `shifts` (rows,), moved right by so many columns, and room for more.

    What a shift pushes out is lost: the caller runs those tokens again. What it leaves on the left is padding.
    """

    def repeat(states: Tensor, columns: int) -> Tensor:
        buffer = states.new_empty(len(shifts), states.shape[1], columns + room, states.shape[-1])
        if not bool(shifts.any()):
            buffer[:, :, :columns] = states
        else:
            moved = shifts.to(states.device)  # a network's layers may lie on several devices
            source = (torch.arange(columns, device=states.device) - moved[:, None]).clamp(min=0)
            buffer[:, :, :columns] = states[0][:, source].transpose(0, 1)
        return buffer

    return _built([prefix], prefix.get_seq_length(), lambda parts, columns: repeat(parts[0], columns))


def beginning(cache: Any, columns: int) -> Any:
    """A copy of the first `columns` columns of every row."""
    return _built([cache], columns, lambda parts, kept: parts[0][:, :, :kept].clone())


def joined(caches: Sequence[Any], rows: Sequence[Tensor], columns: int, *, room: int = 0) -> Any:
    """A new cache of the last `columns` columns of chosen `rows` of several caches, one after another.

    Shorter ones get zeros on their left: padding is masked, but what is masked must still be finite.
    """

    def join(parts: Sequence[Tensor], _columns: int) -> Tensor:
        total, (_, heads, _, width) = sum(len(chosen) for chosen in rows), parts[0].shape
        buffer, start = parts[0].new_zeros(total, heads, columns + room, width), 0
        for states, chosen in zip(parts, rows, strict=True):
            kept = min(columns, states.shape[-2])
            source = states[:, :, states.shape[-2] - kept :]
            buffer[start : start + len(chosen), :, columns - kept : columns] = source[chosen.to(source.device)]
            start += len(chosen)
        return buffer

    return _built(caches, columns, join)


def _built(caches: Sequence[Any], columns: int, build: Callable[[Sequence[Tensor], int], Tensor]) -> Any:
    """A cache whose layers hold what `build` makes of the keys, and of the values, of the given caches' layers."""
    result = empty_cache()
    for index, like in enumerate(caches[0].layers):
        layer = RoomyLayer()
        if like.is_initialized:  # a layer that borrows another's keys stays empty
            layers = [cache.layers[index] for cache in caches]
            keys, values = ([getattr(one, name) for one in layers] for name in ("keys", "values"))
            layer.fill(build(keys, columns), build(values, columns), columns)
        result.layers.append(layer)
    return result
