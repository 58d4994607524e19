"""The innermost loops, compiled for the CPU by Numba.

A column of a weight and a group of N:M have so few numbers that torch and NumPy need more time for the dispatch of an
operation than for the operation itself. Numba caches the machine code beside this file or, if that is not writable, in
the user's cache folder.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
CHUNK = 512  # weights of a column at a time, so that those of a panel stay in the processor's inner caches


def _compiled(function: Callable[..., None], *, inline: bool = False) -> Callable[..., None]:
    """Compile a function on arrays, which then runs without the GIL. inline: compile it into its callers."""
    # No `fastmath`: operations round as in IEEE 754 and run in the order written, on any processor.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": "always" if inline else "never"}
    try:
        fast: Callable[..., None] = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no cache folder is writable
        fast = numba.njit(function, **options)
    return fast


def _zero(values: Floats, zeroed: Mask) -> None:
    for row in range(values.size):
        if zeroed[row]:
            values[row] = 0


def _round(values: Floats, scale: Floats, low: Floats, high: Floats) -> None:
    for row in range(values.size):
        steps = np.rint(values[row] / scale[row])
        steps = max(steps, low[row])  # in this order NaN stays NaN
        steps = min(steps, high[row])
        values[row] = (steps + np.float32(0)) * scale[row]  # −0 becomes 0


def _difference(values: Floats, dense: Floats, errors: Floats) -> None:
    for row in range(values.size):
        errors[row] = values[row] - dense[row]


def _spread(values: Floats, error: Floats, share: np.float32) -> None:
    for row in range(values.size):
        values[row] -= share * error[row]


def _spread_four(values: Floats, errors: Floats, share: Floats, part: slice) -> None:
    first, second, third, fourth = errors[0, part], errors[1, part], errors[2, part], errors[3, part]
    a, b, c, d = share[0], share[1], share[2], share[3]
    for row in range(values.size):
        values[row] -= (a * first[row] + b * second[row]) + (c * third[row] + d * fourth[row])


zero, round_ = _compiled(_zero, inline=True), _compiled(_round, inline=True)
difference = _compiled(_difference, inline=True)
spread, spread_four = _compiled(_spread, inline=True), _compiled(_spread_four, inline=True)


def _replace_columns(
    values: Floats,
    dense: Floats,
    errors: Floats,
    unit: Floats,
    zeroed: Mask,
    number: NDArray[np.int64],
    scale: Floats,
    low: Floats,
    high: Floats,
    start: int,
    stop: int,
    first: int,
    chosen: int,
) -> None:
    """Do what `replacement.replace_plainly` does, for the columns start … stop.

    errors begin with column `first`; zeroed and number with column `chosen`. An empty `zeroed` zeroes nothing, an empty
    `number` rounds nothing.
    """
    rows = values.shape[1]
    for chunk in range(0, rows, CHUNK):
        part = slice(chunk, min(chunk + CHUNK, rows))
        for column in range(start, stop):
            now = values[column, part]
            whole = start + (column - start) // 4 * 4
            for before in range(start, whole, 4):  # four columns per pass, to load and store `now` less often
                spread_four(now, errors[before - first : before - first + 4], unit[before : before + 4, column], part)
            for before in range(whole, column):
                spread(now, errors[before - first, part], unit[before, column])
            if zeroed.size:
                zero(now, zeroed[column - chosen, part])
            if number.size:
                grid = number[column - chosen]
                round_(now, scale[grid, part], low[grid, part], high[grid, part])
            difference(now, dense[column, part], errors[column - first, part])


def _zero_lowest_of_few(scores: Floats, count: int, zeroed: Mask) -> None:
    """Mark the `count` lowest scores of each row, of equal scores the first: (rows, a few) both."""
    rows, width = scores.shape
    for row in range(rows):
        for place in range(width):
            lower = 0
            for other in range(width):
                before = scores[row, other] < scores[row, place]
                if other < place:
                    before |= scores[row, other] == scores[row, place]
                lower += before
            zeroed[row, place] = lower < count


replace_columns, zero_lowest_of_few = _compiled(_replace_columns), _compiled(_zero_lowest_of_few)
