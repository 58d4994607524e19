"""Which weights to zero, given a score for each. In every mask here True means: this weight becomes zero."""

import torch
from torch import Tensor

from llmkick.compression.recipe import NM


def zero_up_to_quantile(scores: Tensor, sparsity: float) -> Tensor:
    """Zero every score ≤ the one at place int(sparsity × count) of all in ascending order: any shape → same.

    The original implementations' rule. It zeroes at least one more than that count, and all ties of the
    threshold with it, so report the realised sparsity and not the nominal one.
    """
    # A selection is several times faster than the sort that the rule speaks of.
    threshold = scores.flatten().kthvalue(int(scores.numel() * sparsity) + 1).values
    return scores <= threshold


def zero_lowest_per_row(scores: Tensor, count: int) -> Tensor:
    """Zero exactly `count` lowest scores of each row; of equal scores the first: (rows, columns) → same."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    zeroed = scores <= threshold
    if int(zeroed.sum()) == count * scores.shape[0]:
        return zeroed
    # Some rows have more scores at the threshold than places left: a stable sort would take the first ones.
    below = scores < threshold
    ties = zeroed & ~below
    places = count - below.sum(dim=1, keepdim=True)
    return below | (ties & (ties.cumsum(dim=1) <= places))


def zero_lowest_per_group(scores: Tensor, pattern: NM) -> Tensor:
    """Zero all but the `kept` highest of each `group` consecutive inputs: (out, in) → same.

    Of equal scores the first is zeroed. `in` is a multiple of the group.
    """
    grouped = scores.reshape(-1, pattern.group)
    return zero_lowest_per_row(grouped, pattern.group - pattern.kept).view(scores.shape)
