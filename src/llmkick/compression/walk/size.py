"""How many bytes the compact form of a compressed weight takes."""

from __future__ import annotations

import math

from llmkick.compression.recipe import NM, Grid, Recipe, Unstructured
from llmkick.models.checkpoints.bit_streams import pattern_bits

SCALE_BITS = 32  # scales are stored in the float32 of the kernels, so that weights are restored bit for bit


def compact_bytes(shape: tuple[int, int], itemsize: int, recipe: Recipe, sparsity: float) -> int:
    """Bytes of a weight (out, in) with `itemsize` bytes a value and the realised sparsity, as `packed` stores it.

    Unstructured: a bit for every weight, and the values that are not zero. N:M: the kept values and, for each group,
    the number of its pattern. Integer grid: the codes, and a 32-bit scale and a zero point for each group. A pruned and
    rounded weight has codes for its remaining values only.
    """
    rows, columns = shape
    count = rows * columns
    kept, value_bits, streams = count, 8 * itemsize, []
    for part in recipe.parts:
        if isinstance(part, Unstructured):
            kept = round(count * (1 - sparsity))
            streams.append(count)
        elif isinstance(part, NM):
            kept = count // part.group * part.kept
            streams.append(count // part.group * pattern_bits(part.kept, part.group))
        elif isinstance(part, Grid):
            groups = rows * math.ceil(columns / (part.group_size or columns))
            value_bits = part.bits
            streams += [groups * SCALE_BITS, 0 if part.symmetric else groups * part.bits]
    return sum(math.ceil(bits / 8) for bits in (kept * value_bits, *streams))
