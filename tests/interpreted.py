"""Runs the kernel for GPUs in Triton's interpreter, beside the plain loop: a program of its own.

The interpreter has to be asked for before Triton is imported. Prints for each case that is named as an argument whether
the results are equal.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from llmkick.compression.kernels import columns
from llmkick.compression.kernels.columns import Replacer
from llmkick.compression.kernels.replacement import replace_plainly
from llmkick.compression.walk.weight import compress_weight

# Recipe, rows and columns of the weight. A program of the kernel has 32 rows, a block 128 columns.
CASES = [
    *[(f"gptq@{bits}b{sign}", 5, 24) for bits in (2, 3, 4, 8) for sign in ("", "-sym")],
    *[(f"gptq@3b-g{group}", 4, 40) for group in (2, 8, 12, 16, 40, 64)],
    *[(f"gptq@4b-g8{flags}", 3, 24) for flags in ("-act", "-static", "-act-static", "-sym-act")],
    *[("gptq@4b", rows, width) for rows, width in ((1, 1), (32, 7), (33, 9), (70, 8))],
    ("gptq@3b-g130", 2, 135),
    *[(f"sparsegpt@{level}", 5, 24) for level in ("0.3", "0.7", "1:2", "2:4", "3:4", "4:8", "2:3", "12:24")],
    *[(f"sparsegpt@{level}", 4, 24) for level in ("0.5+3b", "0.5+4b-g8", "2:4+4b", "2:4+4b-g6-sym", "4:8+2b-g8")],
    ("sparsegpt@2:4", 33, 12),
    ("sparsegpt@3:5", 2, 130),
    ("wanda@0.5+gptq@4b", 5, 24),
    ("wanda@2:4+gptq@3b-g8", 5, 24),
    ("magnitude@0.5+gptq@4b-g8-act", 5, 24),
]


def problem(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """A weight with a row of zeros, and correlated inputs of which one is always 0."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    weight = torch.randn(rows, width, generator=generator)
    weight[rows // 2] = 0 if rows > 1 else weight[0]
    mixing = torch.eye(width) + torch.randn(width, width, generator=generator) / width**0.5
    inputs = torch.randn(2, 150, width, generator=generator) @ mixing
    inputs[..., 3:4] = 0
    return weight, inputs


def compressed_by(replacer: Replacer, recipe: str, weight: Tensor, inputs: Tensor) -> Tensor:
    columns.is_compiled_for = lambda _device: False
    columns.replacer_for = lambda _device: replacer  # type: ignore[assignment]
    return compress_weight(weight, inputs, recipe)


def main() -> None:
    from llmkick.compression.kernels.fused import replace_columns, try_on

    torch.set_num_threads(1)
    calls = 0

    def counted(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        replace_columns(*arguments)  # type: ignore[arg-type]

    try_on(torch.device("cpu"))
    results = {}
    for recipe, rows, width in CASES:
        name = f"{recipe} of {rows} × {width}"
        if name not in sys.argv[1:]:
            continue
        weight, inputs = problem(rows, width)
        found, expected = (compressed_by(how, recipe, weight, inputs) for how in (counted, replace_plainly))
        results[name] = {
            "calls": calls,
            "equal": bool(torch.equal(found, expected)),
            "signs": bool(torch.equal(found.signbit(), expected.signbit())),
        }
        calls = 0
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
