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
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.replacement import replace_plainly
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import compress_alike, compress_weight

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


# Of three weights at once, each with inputs of its own.
ALIKE = [
    *[(f"gptq@{level}", 5, 40) for level in ("4b", "3b-g8", "4b-g8-act", "4b-g8-sym-static", "8b-act")],
    *[(f"sparsegpt@{level}", 5, 24) for level in ("0.5", "2:4", "0.5+4b-g8", "2:4+4b-g6-sym", "12:24")],
    *[(recipe, 5, 24) for recipe in ("wanda@0.5", "wanda@2:4", "wanda@0.5+gptq@4b-g8", "magnitude@0.5+gptq@4b-act")],
    ("gptq@4b", 33, 9),
    ("sparsegpt@3:5", 33, 130),
    ("sparsegpt@0.5", 1, 135),
    ("gptq@3b-g130", 2, 135),
]


def problem(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with a row of zeros, and correlated inputs of which one is always 0."""
    generator = torch.Generator().manual_seed(rows * 1000 + width + 10**6 * seed)
    weight = torch.randn(rows, width, generator=generator)
    weight[rows // 2] = 0 if rows > 1 else weight[0]
    mixing = torch.eye(width) + torch.randn(width, width, generator=generator) / width**0.5
    inputs = torch.randn(2, 150, width, generator=generator) @ mixing
    inputs[..., 3 + seed : 4 + seed] = 0
    return weight, inputs


def compressed_alike(replacer: Replacer, recipe: str, problems: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Several weights at once, by single operations or by the kernel: (weights, out, in)."""
    columns.is_compiled_for = lambda _device: False
    columns.replacer_for = lambda _device: replacer  # type: ignore[assignment]
    parsed = parse_recipe(recipe)
    statistics = [InputStatistics(weight.shape[1], hessian=parsed.needs_hessian) for weight, _ in problems]
    for own, (_, inputs) in zip(statistics, problems, strict=True):
        own.add(inputs)
    names = [f"expert {number}" for number in range(len(problems))]
    results = compress_alike([weight for weight, _ in problems], statistics, parsed, names)
    return torch.stack([result.weight for result in results])


def compressed_by(replacer: Replacer, recipe: str, weight: Tensor, inputs: Tensor) -> Tensor:
    columns.is_compiled_for = lambda _device: False
    columns.replacer_for = lambda _device: replacer  # type: ignore[assignment]
    return compress_weight(weight, inputs, recipe)


def main(*asked: str) -> None:
    """Print what was found for each case that is named."""
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
        if name not in asked:
            continue
        weight, inputs = problem(rows, width)
        found, expected = (compressed_by(how, recipe, weight, inputs) for how in (counted, replace_plainly))
        results[name] = {
            "calls": calls,
            "equal": bool(torch.equal(found, expected)),
            "signs": bool(torch.equal(found.signbit(), expected.signbit())),
        }
        calls = 0
    for recipe, rows, width in ALIKE:
        name = f"3 × {recipe} of {rows} × {width}"
        if name not in asked:
            continue
        problems = [problem(rows, width, seed) for seed in range(3)]
        found, expected = (compressed_alike(how, recipe, problems) for how in (counted, replace_plainly))
        results[name] = {
            "calls": calls,
            "equal": bool(torch.equal(found, expected)),
            "signs": bool(torch.equal(found.signbit(), expected.signbit())),
        }
        calls = 0
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
