"""Checks for NaN or Inf in a tensor, based on its smallest and largest value.

Minimum and maximum propagate both, and are faster than a mask of all entries, which would also take memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf; true of an empty tensor."""
    return tensor.numel() == 0 or bool(is_finite(tensor))


def is_finite(tensor: Tensor) -> Tensor:
    """The same of a tensor that is not empty, as () bool on its device, which nothing waits for."""
    return torch.isfinite(torch.stack(torch.aminmax(tensor))).all()


def first_not_finite(tensors: Sequence[Tensor]) -> int | None:
    """The place of the first of some tensors that holds NaN or Inf, or None. Each device is waited for once."""
    flags: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(tensors):
        flags.setdefault(tensor.device, []).append((place, is_finite(tensor)))
    bad = [
        place
        for own in flags.values()
        for (place, _), held in zip(own, torch.stack([flag for _, flag in own]).tolist(), strict=True)
        if not held
    ]
    return min(bad, default=None)


def finite_rows(rows: Tensor) -> Tensor:
    """Which rows hold neither NaN nor Inf: (rows, entries) → (rows,) bool."""
    return torch.isfinite(rows.amin(-1)) & torch.isfinite(rows.amax(-1))
