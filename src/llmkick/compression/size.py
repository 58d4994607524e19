"""How many bytes a compressed weight needs: the size of the compact form, computed from its contents."""

from __future__ import annotations

import math

from llmkick.compression.recipe import NM, Grid, Recipe, Unstructured

SCALE_BYTES = 2


def compact_bytes(shape: tuple[int, int], itemsize: int, recipe: Recipe, zeros: float) -> int:
    """Bytes of a (out, in) weight of `itemsize` bytes a value, of which a share `zeros` is zero.

    Unstructured: a bit for every weight and the values left. N:M: the kept values and, for each group, the
    number of its pattern. Integer grid: the codes, and a 16-bit scale and a zero point for each group.
    Pruned and rounded weights keep codes only for what is left.
    """
    rows, columns = shape
    count = rows * columns
    kept, bits_a_value, extra_bits = count, 8 * itemsize, 0
    for part in recipe.parts:
        if isinstance(part, Unstructured):
            kept, extra_bits = round(count * (1 - zeros)), extra_bits + count
        elif isinstance(part, NM):
            groups = count // part.group
            kept = groups * part.kept
            extra_bits += groups * math.ceil(math.log2(math.comb(part.group, part.kept)))
        elif isinstance(part, Grid):
            groups = rows * math.ceil(columns / (part.group_size or columns))
            bits_a_value = part.bits
            extra_bits += groups * (8 * SCALE_BYTES + (0 if part.symmetric else part.bits))
    return math.ceil((kept * bits_a_value + extra_bits) / 8)
