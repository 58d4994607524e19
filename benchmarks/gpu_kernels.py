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
from llmkick.compression.walk.weight import compress_alike, compress_weight, relative_output_error

RECIPES = (
    *("magnitude@0.5", "magnitude@2:4", "wanda@0.5", "wanda@2:4", "rtn@4b-g128"),
    *("gptq@4b", "gptq@3b-g128", "gptq@4b-g32-sym", "gptq@4b-g128-act", "wanda@2:4+gptq@4b"),
    *("sparsegpt@0.5", "sparsegpt@2:4", "sparsegpt@4:8", "sparsegpt@2:4+4b-g128"),
)


# Of several weights of one shape at once, as experts are solved on a GPU.
ALIKE = ("wanda@2:4", "gptq@4b-g128", "gptq@4b-g32-act", "sparsegpt@0.5", "sparsegpt@2:4+4b-g128")
EXPERTS = 8


def problem(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and correlated inputs in bfloat16 of which some are large and one is always 0."""
    generator = torch.Generator().manual_seed(seed)
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
    if device.type != "cpu":  # where experts are solved one by one
        results += alike_rows(device, tiny=tiny)
    return {"recipes": results, "replacer": _replacer(device), "moments": _moments(there[1], inputs)}


def alike_rows(device: torch.device, *, tiny: bool) -> list[dict[str, Any]]:
    """The same of several weights at once, beside those that the CPU compresses one by one."""
    problems = [problem(*((37, 64) if tiny else (1000, 1536)), seed) for seed in range(EXPERTS)]
    rows = []
    for text in ALIKE:
        fast = _alike(text, problems, device)
        with mock.patch.object(columns, "replacer_for", return_value=replace_plainly):
            plain = _alike(text, problems, device)
        here = torch.stack([compress_weight(weight, inputs, text) for weight, inputs in problems])
        rows.append(
            {
                "recipe": f"{EXPERTS} × {text}",
                "weight": " × ".join(map(str, fast.shape)),
                "equal_plain": torch.equal(fast, plain),
                "same_as_cpu": float(((fast - here).abs() <= 1e-5).double().mean()),
                "error_ratio": None,
            }
        )
    return rows


def _alike(text: str, problems: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Several weights compressed at once on a device: (weights, out, in), on the CPU."""
    recipe = parse_recipe(text)
    statistics = [InputStatistics(weight.shape[1], hessian=recipe.needs_hessian) for weight, _ in problems]
    for own, (_, inputs) in zip(statistics, problems, strict=True):
        own.add(inputs.to(device))
    weights, names = [weight.to(device) for weight, _ in problems], [f"expert {n}" for n in range(len(problems))]
    return torch.stack([result.weight.cpu() for result in compress_alike(weights, statistics, recipe, names)])


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
