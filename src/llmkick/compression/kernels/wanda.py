"""Wanda (arXiv 2306.11695): zero the smallest products of weight and input norm, without an update of the others."""

from torch import Tensor

from llmkick.compression.kernels.masks import zero_lowest_per_group, zero_lowest_per_row
from llmkick.compression.kernels.patterns import NM, Pattern


def wanda_scores(weight: Tensor, mean_square: Tensor) -> Tensor:
    """|weight| × √(mean over sequences of Σ input²), float32: (…, out, in), (…, in) → (…, out, in)."""
    return weight.abs().float() * mean_square.sqrt()[..., None, :]


def wanda(weight: Tensor, mean_square: Tensor, pattern: Pattern) -> Tensor:
    """Zero the lowest scores of each row, or of each N:M group of inputs: (…, out, in), (…, in) → (…, out, in).

    Unstructured: exactly int(in × sparsity) weights of each row. Of equal scores the first is zeroed.
    """
    scores = wanda_scores(weight, mean_square)
    if isinstance(pattern, NM):
        return weight.masked_fill(zero_lowest_per_group(scores, pattern), 0)
    count = int(weight.shape[-1] * pattern.sparsity)
    zeroed = zero_lowest_per_row(scores.flatten(0, -2), count).view(scores.shape)
    return weight.masked_fill(zeroed, 0)
