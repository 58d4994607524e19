"""Masks: which weights to zero, given a score for each. True means that the weight becomes zero."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmkick.compression.kernels.patterns import NM

FloatArray = npt.NDArray[np.floating[Any]]

FEW = 16  # up to so many values of a row are compared pairwise
SORTED_VALUES = 2**25  # values that are sorted, or compared, at a time: some 500 MiB to work with
LONG = 2**13  # from so many values on, a sample is taken first
SAMPLED = 17  # every 17th value is sampled; a prime, so that it is not the same row of every column
SLACK = 2.5  # margin around the expected place in the sample, times √(its size): five standard deviations at least


def zero_up_to_quantile(scores: Tensor, sparsity: float) -> Tensor:
    """Zero all scores up to the one at place int(sparsity × count) in ascending order: any shape → same.

    This is the rule of the original implementations. It zeroes at least one weight more than that count, and all ties
    of the threshold, so report the realised sparsity, not the nominal one.
    """
    # Selecting the threshold is several times faster than sorting the scores.
    threshold = _kth_lowest(scores.flatten()[None], int(scores.numel() * sparsity) + 1)
    return scores <= threshold


def zero_up_to_quantiles(scores: Tensor, sparsity: float) -> Tensor:
    """The same with a threshold for each of several matrices: (…, rows, columns) → same."""
    count = scores.shape[-2] * scores.shape[-1]
    matrices = torch.split(scores.reshape(-1, count), max(1, SORTED_VALUES // count))
    thresholds = torch.cat([_kth_lowest(some, int(count * sparsity) + 1) for some in matrices])
    return scores <= thresholds.view(*scores.shape[:-2], 1, 1)


def zero_lowest_per_row(scores: Tensor, count: int) -> Tensor:
    """Zero exactly the `count` lowest scores of each row; of equal scores the first ones: (rows, columns) → same."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.device.type != "cpu":
        return zero_lowest_without_waiting(scores, count)
    if scores.shape[1] <= FEW and scores.dtype == torch.float32:
        from llmkick.compression.kernels.compiled import zero_lowest_of_few

        few = torch.empty_like(scores, dtype=torch.bool)
        zero_lowest_of_few(scores.detach().numpy(), count, few.numpy())
        return few
    threshold = _kth_lowest(scores, count)
    zeroed = scores <= threshold
    if int(zeroed.sum()) == count * scores.shape[0]:
        return zeroed
    # Some rows have more scores equal to the threshold than may be zeroed: take the first, as a stable sort would.
    below = scores < threshold
    ties = zeroed & ~below
    places = count - below.sum(dim=1, keepdim=True)
    return below | (ties & (ties.cumsum(dim=1) <= places))


def zero_lowest_without_waiting(scores: Tensor, count: int) -> Tensor:
    """Do the same on a GPU, which need not tell the processor whether there are ties: (rows, columns) → same."""
    choose = _lowest_by_pairs if scores.shape[1] <= FEW else _lowest_by_sort
    pieces = torch.split(scores, max(1, SORTED_VALUES // scores.shape[1]))
    return choose(pieces[0], count) if len(pieces) == 1 else torch.cat([choose(piece, count) for piece in pieces])


def _lowest_by_pairs(scores: Tensor, count: int) -> Tensor:
    """The mask of the `count` lowest of a few scores in each row, by the number of scores before each."""
    place = torch.arange(scores.shape[1], device=scores.device)
    before = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    for other in range(scores.shape[1]):
        score = scores[:, other : other + 1]
        before += torch.where(place > other, score <= scores, score < scores)
    return before < count


def _lowest_by_sort(scores: Tensor, count: int) -> Tensor:
    """The mask of the `count` lowest scores in each row, by a stable sort, which is a radix sort on a GPU."""
    lowest = scores.sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, lowest, True)


def zero_lowest_per_group(scores: Tensor, pattern: NM) -> Tensor:
    """Zero all but the `kept` highest scores of each `group` consecutive inputs: (out, in) → same.

    Of equal scores the first is zeroed. `in` must be a multiple of the group.
    """
    grouped = scores.reshape(-1, pattern.group)
    return zero_lowest_per_row(grouped, pattern.group - pattern.kept).view(scores.shape)


def _kth_lowest(scores: Tensor, count: int) -> Tensor:
    """The score at place `count` (from 1) of each row in ascending order: (rows, columns) → (rows, 1)."""
    if scores.device.type != "cpu":
        # A GPU sorts with all its cores, but selects the k-th of a row with one of them.
        return scores.sort(dim=1).values[:, count - 1 : count]
    if scores.dtype != torch.float32:
        return scores.kthvalue(count, dim=1, keepdim=True).values
    values = scores.detach().numpy()
    if len(values) == 1 and values.size >= LONG:
        return torch.from_numpy(_select_from_long(values[0], count - 1).reshape(1, 1))
    # NumPy selects with vector instructions, torch does not.
    return torch.from_numpy(np.partition(values, count - 1, axis=1)[:, count - 1 : count].copy())


def _select_from_long(values: FloatArray, place: int) -> FloatArray:
    """The value at `place` (from 0) in ascending order: (n,) → (1,).

    A sample gives two values between which it almost certainly lies, so that few values are left to select from (Floyd
    and Rivest 1975). If the sample misleads, the selection is made from all values.
    """
    sample = values[::SAMPLED]
    middle, slack = min(place // SAMPLED, len(sample) - 1), int(SLACK * len(sample) ** 0.5)
    low, high = max(0, middle - slack), min(len(sample) - 1, middle + slack)
    bounds = np.partition(sample, [low, high])
    lowest = -np.inf if low == 0 else bounds[low]
    highest = np.inf if high == len(sample) - 1 else bounds[high]
    below = int(np.count_nonzero(values < lowest))
    between = values[(values >= lowest) & (values <= highest)]
    if not below <= place < below + len(between):
        between, below = values, 0
    return np.partition(between, place - below)[place - below : place - below + 1].copy()
