"""Low-rank matrices that are kept beside a weight, and the weight that both stand for together, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Values that are added up together: what they need in between stays in the processor's caches.
VALUES_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Two thin matrices of one half precision, whose product b·a is added to a weight (out, in)."""

    b: Tensor  # (out, rank)
    a: Tensor  # (rank, in)

    @property
    def size(self) -> int:
        """Bytes of both."""
        return sum(part.numel() * part.element_size() for part in (self.b, self.a))


def adapter_of(b: Tensor, a: Tensor, dtype: torch.dtype) -> Adapter:
    """An adapter for a weight of this dtype: in its own half precision, or in bfloat16 for a weight in float32."""
    half = dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    return Adapter(b=b.to(half).contiguous(), a=a.to(half).contiguous())


def merged(weight: Tensor, adapter: Adapter) -> Tensor:
    """weight + b·a in the weight's dtype: (out, in) → same; a place where b·a is 0 keeps its bits.

    The result is the same on every machine: a product of two halves is exact in float32, and the products of all ranks
    are added one after another. A matrix product would add them in an order that depends on the library.
    """
    b, a = (part.to(weight.device, torch.float32) for part in (adapter.b, adapter.a))
    result = torch.empty_like(weight)
    rows = max(1, VALUES_AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows]
        change = torch.zeros(part.shape, dtype=torch.float32, device=weight.device)
        for rank in range(a.shape[0]):
            change.addcmul_(b[start : start + rows, rank : rank + 1], a[rank : rank + 1])
        result[start : start + rows] = torch.where(change == 0, part, (part.float() + change).to(weight.dtype))
    return result
