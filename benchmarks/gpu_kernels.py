"""The kernels on a device beside the plain loop on it, and beside those of the CPU."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from llmkick.compression.kernels import columns, moments
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.replacement import replace_plainly
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import compress_weight, relative_output_error

RECIPES = (
    *("magnitude@0.5", "magnitude@2:4", "wanda@0.5", "wanda@2:4", "rtn@4b-g128"),
    *("gptq@4b", "gptq@3b-g128", "gptq@4b-g32-sym", "gptq@4b-g128-act", "wanda@2:4+gptq@4b"),
    *("sparsegpt@0.5", "sparsegpt@2:4", "sparsegpt@4:8", "sparsegpt@2:4+4b-g128"),
)


def problem(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """A weight, and correlated inputs in bfloat16 of which some are large and one is always 0."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(width) + torch.randn(width, width, generator=generator) / width**0.5
    inputs = torch.randn(4, 2 * width, width, generator=generator) @ mixing
    inputs[..., :: max(2, width // 8)] *= 20
    inputs[..., 5] = 0
    return torch.randn(rows, width, generator=generator), inputs.bfloat16()


def kernels_part(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """For each recipe: is it the plain loop's result, how much of it is the CPU's, and how good is it."""
    weight, inputs = problem(*((37, 64) if tiny else (1000, 1536)))
    there = weight.to(device), inputs.to(device)
    rows = inputs.flatten(0, 1).float()
    results = []
    for text in RECIPES:
        fast = compress_weight(*there, text).cpu()
        here = compress_weight(weight, inputs, text)
        errors = [relative_output_error(weight, one, rows) for one in (fast, here)]
        results.append(
            {
                "recipe": text,
                "weight": " × ".join(map(str, weight.shape)),
                "equal_plain": _equals_plain(text, there, fast, device),
                "same_as_cpu": float(((fast - here).abs() <= 1e-5).double().mean()),
                "error_ratio": errors[0] / errors[1] if errors[0] and errors[1] else None,
            }
        )
    return {"recipes": results, "replacer": _replacer(device), "moments": _moments(there[1], inputs)}


def _equals_plain(text: str, problem: tuple[Tensor, Tensor], fast: Tensor, device: torch.device) -> bool | None:
    """Whether single operations give the same on this device; None where no kernel of ours runs."""
    if device.type == "cpu" or not parse_recipe(text).needs_hessian:
        return None
    with mock.patch.object(columns, "replacer_for", return_value=replace_plainly):
        return torch.equal(compress_weight(*problem, text).cpu(), fast)


def _replacer(device: torch.device) -> str:
    if columns.is_compiled_for(device):
        return "code compiled for the processor"
    return "one by one" if columns.replacer_for(device) is replace_plainly else "the kernel compiled by Triton"


def _moments(there: Tensor, here: Tensor) -> dict[str, Any]:
    """How far H is from that of float64, as a share of its largest entry."""
    statistics = InputStatistics(there.shape[-1], hessian=True)
    statistics.add(there)
    rows = here.flatten(0, 1).double()
    exact = 2 / len(here) * rows.T @ rows
    difference = (statistics.hessian().cpu().double() - exact).abs().max() / exact.max()
    halves = moments.has_half_products(there)
    return {
        "dtype": str(there.dtype).removeprefix("torch."),
        "product": "halves" if halves else "float32",
        "difference": float(difference),
    }
