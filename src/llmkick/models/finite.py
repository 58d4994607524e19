"""Checks for NaN or Inf in a tensor, based on its smallest and largest value.

Minimum and maximum propagate both, and are faster than a mask of all entries, which would also take memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or Inf; true of an empty tensor."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def finite_rows(rows: Tensor) -> Tensor:
    """Which rows hold neither NaN nor Inf: (rows, entries) → (rows,) bool."""
    return torch.isfinite(rows.amin(-1)) & torch.isfinite(rows.amax(-1))
