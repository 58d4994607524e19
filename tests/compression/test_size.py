"""Bytes of the compact form, counted by hand."""

from __future__ import annotations

import pytest

from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.size import compact_bytes


@pytest.mark.parametrize(
    ("text", "zeros", "expected"),
    [
        # 24 × 40 = 960 weights of 2 bytes
        ("dense", 0.0, 1920),
        ("magnitude@0.5", 0.5, 480 * 2 + 960 // 8),  # the values left, and a bit for each weight
        ("wanda@0.5", 0.6, 384 * 2 + 120),  # what was realised counts, not what was asked for
        ("wanda@0.25", 0.0, 960 * 2 + 120),
        ("sparsegpt@2:4", 0.5, 480 * 2 + 240 * 3 // 8),  # 6 patterns of a group: 3 bits
        ("wanda@1:2", 0.5, 480 * 2 + 480 * 1 // 8),
        ("magnitude@4:8", 0.5, 480 * 2 + 120 * 7 // 8),  # 70 patterns
        ("magnitude@2:4", 0.7, 480 * 2 + 90),  # kept values are stored even where they are 0
        ("rtn@8b", 0.01, 960 + (24 * (32 + 8)) // 8),  # codes; a 32-bit scale and a zero point a row
        ("rtn@4b-g8", 0.1, 480 + 24 * 5 * (32 + 4) // 8),
        ("gptq@3b-g16", 0.1, 360 + 24 * 3 * (32 + 3) // 8),  # 16 + 16 + 8 inputs a row
        ("gptq@4b-g128", 0.1, 480 + 24 * (32 + 4) // 8),
        ("gptq@4b-sym", 0.1, 480 + 24 * 32 // 8),  # the zero point is the same everywhere
        ("gptq@2b-g8-act", 0.3, 240 + 24 * 5 * (32 + 2) // 8),
        ("sparsegpt@0.5+4b", 0.55, 216 + 120 + 24 * 36 // 8),  # codes of the 432 weights left
        ("sparsegpt@2:4+4b-g8", 0.6, 240 + 90 + 24 * 5 * 36 // 8),
        ("wanda@0.5+gptq@4b", 0.5, 240 + 120 + 108),
    ],
)
def test_bytes_by_hand(text: str, zeros: float, expected: int):
    assert compact_bytes((24, 40), 2, parse_recipe(text), zeros) == expected


def test_the_width_of_a_value_is_that_of_the_dense_weight():
    recipe = parse_recipe("magnitude@0.5")
    assert compact_bytes((8, 8), 4, recipe, 0.5) - compact_bytes((8, 8), 2, recipe, 0.5) == 64
    grid = parse_recipe("rtn@4b")  # codes do not depend on it
    assert compact_bytes((8, 8), 4, grid, 0.5) == compact_bytes((8, 8), 2, grid, 0.5)


def test_bits_that_fill_no_byte_are_rounded_up():
    assert compact_bytes((1, 5), 2, parse_recipe("rtn@3b"), 0.0) == 2 + 4 + 1  # 15, 32 and 3 bits
    assert compact_bytes((1, 1), 2, parse_recipe("magnitude@0.5"), 1.0) == 1
