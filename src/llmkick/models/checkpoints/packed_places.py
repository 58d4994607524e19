"""Which values of a weight its compact form keeps: those under a mask, or of N:M patterns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmkick.models.checkpoints.bit_streams import binomials, filled_up, rank_patterns


def under(mask: Tensor, values: Tensor) -> Tensor:
    """The values, (places,), where the mask is set."""
    if not _is_on_the_host(mask):
        return values[mask]
    from llmkick.models.checkpoints.compiled_packing import select

    flags = mask.view(torch.uint8).numpy()
    return torch.from_numpy(select(raw_bits(values).numpy(), flags, int(np.count_nonzero(flags)))).view(values.dtype)


def _is_on_the_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def of_patterns(bits: Tensor, values: Tensor, kept: int, of: int) -> tuple[Tensor, Tensor] | None:
    """Numbers of the patterns, and the values in them; None when a group has more than N non-zeros. bits: of a weight.

    The first zeros of a group belong to its pattern where there are fewer than N others.
    """
    if not _is_on_the_host(bits):
        places = filled_up((bits != 0).view(-1, of), kept)
        return None if places is None else (rank_patterns(places), values[places.flatten()])
    from llmkick.models.checkpoints.compiled_packing import select_patterns

    chosen = select_patterns(bits.numpy(), raw_bits(values).numpy(), kept, binomials(of).numpy())
    return chosen and (torch.from_numpy(chosen[0]), torch.from_numpy(chosen[1]).view(values.dtype))


def raw_bits(tensor: Tensor) -> Tensor:
    """The bits of a float tensor as integers, so that −0 differs from 0 and NaN equals itself."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(integers[tensor.element_size()])
