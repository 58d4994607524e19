"""A batch of prompts that have run, from which each row continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Prefilled:
    """A batch of prompts that have run: the state from which each row continues.

    next_logits: (rows, vocabulary) float32, after the last prompt token; cache: keys and values;
    mask: (rows, cached tokens) 1 where a cached token is real; lengths: (rows,) real tokens a row; last: (rows,) the
    last position that a row needs, None where nothing says it.
    """

    next_logits: Tensor
    cache: Any
    mask: Tensor
    lengths: Tensor
    last: Tensor | None = None

    @property
    def next_positions(self) -> Tensor:
        """(rows, 1) where the next tokens stand; a row that has ended, and gets more of them, stays at its last one.

        Positions beyond it may not exist, or change the rotary positions of all rows.
        """
        positions = self.lengths if self.last is None else torch.minimum(self.lengths, self.last)
        return positions[:, None]

    def select(self, rows: Tensor, *, room: int = 0) -> Prefilled:
        """A copy with these rows, in this order, without the columns that none of them needs; `room` for new ones."""
        return join_states([self], [rows], room=room)

    def reserve(self, room: int) -> None:
        """Make room for so many new columns."""
        from llmkick.models.engine.kv_cache import reserve

        reserve(self.cache, self.mask.shape[1] + room)


def join_states(states: Sequence[Prefilled], rows: Sequence[Tensor], *, room: int = 0) -> Prefilled:
    """Chosen rows of several batches as one batch, in order, ending in the same column, with `room` for new columns."""
    from llmkick.models.engine.kv_cache import join_caches

    lengths = torch.cat([state.lengths[chosen] for state, chosen in zip(states, rows, strict=True)])
    lasts = [state.last[chosen] for state, chosen in zip(states, rows, strict=True) if state.last is not None]
    columns = int(lengths.max())
    return Prefilled(
        next_logits=torch.cat([state.next_logits[chosen] for state, chosen in zip(states, rows, strict=True)]),
        cache=join_caches([state.cache for state in states], rows, columns, room=room),
        mask=(torch.arange(columns, device=lengths.device) >= columns - lengths[:, None]).long(),
        lengths=lengths,
        last=torch.cat(lasts) if len(lasts) == len(states) else None,
    )
