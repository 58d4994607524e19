"""The loops of packing, compiled for the CPU by Numba; on other devices torch does the same, see `packed`.

Values that stand under a mask are taken out without a branch on the mask, which the processor could not predict.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on arrays, which then runs without the GIL."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        fast: Callable[..., Any] = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no cache folder is writable
        fast = numba.njit(function, **options)
    return fast


@_compiled
def _select(values: Numbers, mask: Numbers, chosen: Numbers) -> None:
    count = 0
    for place in range(values.size):
        chosen[count] = values[place]
        count += mask[place]


@_compiled
def _patterns(bits: Numbers, values: Numbers, kept: int, table: Numbers, ranks: Numbers, chosen: Numbers) -> bool:
    of = table.shape[0]
    for group in range(ranks.size):
        start = group * of
        filled = 0
        for place in range(of):
            filled += bits[start + place] != 0
        if filled > kept:
            return False
        missing = kept - filled
        count = rank = 0
        for place in range(of):
            is_zero = bits[start + place] == 0
            taken = (not is_zero) or missing > 0
            missing -= is_zero and missing > 0
            chosen[group * kept + count if count < kept else chosen.size - 1] = values[start + place]
            count += taken
            rank += table[place, count] * taken
        ranks[group] = rank
    return True


def select(values: Numbers, mask: Numbers, count: int) -> Numbers:
    """The values, (places,), under a mask, (places,) uint8 of 0 and 1, of which `count` are 1: (count,)."""
    chosen = np.empty(count + 1, dtype=values.dtype)  # the last one takes what comes after the last 1
    _select(values, mask, chosen)
    return chosen[:count]


def select_patterns(bits: Numbers, values: Numbers, kept: int, table: Numbers) -> tuple[Numbers, Numbers] | None:
    """Numbers of patterns and values of a weight in groups of M, of which N are kept; None where a group has more.

    bits: (groups · M,) integers, 0 where the weight is 0; the first zeros of a group fill its pattern up. values: as
    many. table: C(p, k), (M, M + 1). Returns (groups,) int64 and (groups · N,).
    """
    groups = bits.size // table.shape[0]
    ranks, chosen = np.empty(groups, dtype=np.int64), np.empty(groups * kept + 1, dtype=values.dtype)
    if not _patterns(bits, values, kept, table, ranks, chosen):
        return None
    return ranks, chosen[:-1]
