"""How many bytes a compressed weight needs: the size of the compact form, computed from its contents."""

from __future__ import annotations

import math

from llmkick.compression.recipe import NM, Grid, Recipe, Unstructured
from llmkick.models.checkpoints.bit_streams import pattern_bits

SCALE_BITS = 32  # what the kernels round with, so that the weights come back bit for bit


def compact_bytes(shape: tuple[int, int], itemsize: int, recipe: Recipe, zeros: float) -> int:
    """Bytes of a (out, in) weight of `itemsize` bytes a value, of which a share `zeros` is zero.

    What `models.packed` stores. Unstructured: a bit for every weight and the values left. N:M: the kept values
    and, for each group, the number of its pattern. Integer grid: the codes, and a 32-bit scale and a zero point
    for each group. Pruned and rounded weights keep codes only for what is left.
    """
    rows, columns = shape
    count = rows * columns
    kept, value_bits, streams = count, 8 * itemsize, []
    for part in recipe.parts:
        if isinstance(part, Unstructured):
            kept = round(count * (1 - zeros))
            streams.append(count)
        elif isinstance(part, NM):
            kept = count // part.group * part.kept
            streams.append(count // part.group * pattern_bits(part.kept, part.group))
        elif isinstance(part, Grid):
            groups = rows * math.ceil(columns / (part.group_size or columns))
            value_bits = part.bits
            streams += [groups * SCALE_BITS, 0 if part.symmetric else groups * part.bits]
    return sum(math.ceil(bits / 8) for bits in (kept * value_bits, *streams))
