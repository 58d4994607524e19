"""Magnitude pruning: zero the smallest weights, without calibration and without an update of the others."""

from torch import Tensor

from llmkick.compression.kernels.masks import zero_lowest_per_group, zero_up_to_quantile
from llmkick.compression.kernels.patterns import NM, Pattern


def magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """Zero the smallest |weight|, over the whole matrix or within N:M groups of inputs: (out, in) → same."""
    scores = weight.abs()
    if isinstance(pattern, NM):
        return weight.masked_fill(zero_lowest_per_group(scores, pattern), 0)
    return weight.masked_fill(zero_up_to_quantile(scores, pattern.sparsity), 0)
