"""The key-value cache of a batch, in preallocated buffers: cut, repeated, joined and continued.

Rows are right-aligned: padding is only to the left of a row's first token, never between two of its tokens.
A distance in columns is then a distance in tokens, on which sliding windows rely.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Columns by which a full buffer grows. transformers uses torch.cat, which copies the whole cache for every token.
GROWTH = 32


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, each (rows, heads, columns, width); new columns are written in place."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, ...] = ()
        self._columns = 0
        self._pinned: Tensor | None = None

    def fill(self, keys: Tensor, values: Tensor, columns: int) -> None:
        """Use these buffers, of which the first `columns` hold tokens."""
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._buffers, self._columns = (keys, values), columns
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and all values."""
        if self._pinned is not None:
            keys, values = self._buffers
            return keys.index_copy_(2, self._pinned, key_states), values.index_copy_(2, self._pinned, value_states)
        start, end = self._columns, self._columns + key_states.shape[-2]
        keys, values = self._buffers or (key_states, value_states)
        if keys.shape[-2] < end:
            keys, values = (_grown(buffer, start, end + GROWTH) for buffer in (keys, values))
        if self._buffers:
            keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.fill(keys, values, end)
        return keys[:, :, :end], values[:, :, :end]

    @property
    def capacity(self) -> int:
        """The number of columns that the buffers hold."""
        return self._buffers[0].shape[-2] if self._buffers else 0

    def column(self, index: int) -> tuple[Tensor, ...]:
        """A copy of the keys and the values of one column."""
        return tuple(buffer[:, :, index].clone() for buffer in self._buffers)

    def set_column(self, index: int, states: tuple[Tensor, ...]) -> None:
        """Write what `column` has read."""
        for buffer, kept in zip(self._buffers, states, strict=True):
            buffer[:, :, index] = kept

    def pin(self, column: Tensor) -> None:
        """Write every update to this column, a tensor of one index, and return whole buffers, until `unpin`."""
        for buffer in self._buffers:
            buffer[:, :, self._columns :] = 0  # hidden by masks, but a NaN would get through
        self._pinned = column

    def unpin(self, columns: int) -> None:
        """Append columns again; the first `columns` hold tokens."""
        self._pinned = None
        keys, values = self._buffers
        self.fill(keys, values, columns)

    def reserve(self, columns: int) -> None:
        """Make room for so many columns in all, unless there is room or the layer is empty."""
        if self._buffers and self._buffers[0].shape[-2] < columns:
            keys, values = (_grown(buffer, self._columns, columns) for buffer in self._buffers)
            self.fill(keys, values, self._columns)


def _grown(buffer: Tensor, used: int, columns: int) -> Tensor:
    grown = buffer.new_empty(*buffer.shape[:2], columns, buffer.shape[-1])
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def can_reuse_cache(network: Any, columns: int) -> bool:
    """Whether keys and values of this network may be padded, repeated and continued without error.

    A recurrent state cannot be cut, and a network without `position_ids` counts padding as tokens. A network with
    chunked attention, or whose rotary scaling depends on the longest text of a batch, is safe only while the
    `columns` of a batch stay within its first chunk or its original length. Other networks run every request whole.
    """
    accepted = inspect.signature(network.forward).parameters
    if getattr(network, "_is_stateful", False) or not {"position_ids", "past_key_values"} <= accepted.keys():
        return False
    config = network.config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()) and columns > config.attention_chunk_size:
        return False
    if columns > rotary_limit(network):
        return False
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def rotary_limit(network: Any) -> float:
    """The text length up to which rotary positions are not rescaled; inf where they never are."""
    config = network.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    # One dictionary for all layers, or one for each type of layer.
    kinds = [rope] if "rope_type" in rope else [entry for entry in rope.values() if isinstance(entry, dict)]
    limits = [
        scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        for scaling in kinds
        if scaling.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=float("inf"))


def empty_cache() -> Any:
    """A cache that keeps every column of every layer, in preallocated layers."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = PreallocatedLayer
    return cache


def repeat_prefix(prefix: Any, shifts: Tensor, room: int) -> Any:
    """The single row of `prefix`, repeated and moved right by each of `shifts` (rows,) columns, with `room` for more.

    Columns that a shift pushes out are lost: the caller runs those tokens again. Columns that it frees are padding.
    `shifts` is on the processor's side, where reading it waits for no GPU.
    """

    def repeat(states: Tensor, columns: int) -> Tensor:
        buffer = states.new_empty(len(shifts), states.shape[1], columns + room, states.shape[-1])
        if not bool(shifts.any()):
            buffer[:, :, :columns] = states
        else:
            moved = shifts.to(states.device, non_blocking=True)  # a network's layers may lie on several devices
            source = (torch.arange(columns, device=states.device) - moved[:, None]).clamp(min=0)
            buffer[:, :, :columns] = states[0][:, source].transpose(0, 1)
        return buffer

    return _build_cache([prefix], prefix.get_seq_length(), lambda parts, columns: repeat(parts[0], columns))


def moved_right(cache: Any, shifts: Tensor) -> Any:
    """A copy of every row, moved right by each of `shifts` (rows,) columns; padding behind a row comes before it."""

    def move(states: Tensor, columns: int) -> Tensor:
        moved = shifts.to(states.device)
        source = (torch.arange(columns, device=states.device) - moved[:, None]).clamp(min=0)
        rows = torch.arange(len(states), device=states.device)[:, None]
        return states[rows, :, source].transpose(1, 2)

    return _build_cache([cache], cache.get_seq_length(), lambda parts, columns: move(parts[0], columns))


def repeat_rows(cache: Any, rows: Tensor, columns: int, *, room: int) -> Any:
    """The first `columns` columns of chosen `rows`, which may repeat, with `room` for more."""

    def repeat(states: Tensor) -> Tensor:
        buffer = states.new_empty(len(rows), states.shape[1], columns + room, states.shape[-1])
        buffer[:, :, :columns] = states[rows.to(states.device), :, :columns]
        return buffer

    return _build_cache([cache], columns, lambda parts, _: repeat(parts[0]))


def first_columns(cache: Any, columns: int) -> Any:
    """A copy of the first `columns` columns of every row."""
    return _build_cache([cache], columns, lambda parts, kept: parts[0][:, :, :kept].clone())


def reserve(cache: Any, columns: int) -> None:
    """Make room for so many columns in all layers, so that nothing is allocated while they are filled."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.reserve(columns)


def join_caches(caches: Sequence[Any], rows: Sequence[Tensor], columns: int, *, room: int = 0) -> Any:
    """A new cache of the last `columns` columns of chosen `rows` of several caches, one after another.

    Shorter rows get zeros on their left: padding is masked, but masked values must still be finite.
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

    return _build_cache(caches, columns, join)


def _build_cache(caches: Sequence[Any], columns: int, build: Callable[[Sequence[Tensor], int], Tensor]) -> Any:
    """A cache whose layers hold what `build` makes of the keys, and of the values, of the given caches' layers."""
    result = empty_cache()
    for index, like in enumerate(caches[0].layers):
        layer = PreallocatedLayer()
        if like.is_initialized:  # a layer that borrows another's keys stays empty
            layers = [cache.layers[index] for cache in caches]
            keys, values = ([getattr(source, name) for source in layers] for name in ("keys", "values"))
            layer.fill(build(keys, columns), build(values, columns), columns)
        result.layers.append(layer)
    return result
