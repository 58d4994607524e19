"""The solve alone, kernel against kernel: the same weights and the same H, from a block in the middle of the model.

A "block" is all seven linears: there the factor of an H serves every linear that shares the input in ours, and
is made anew for each linear in the obvious procedure.
"""

from collections.abc import Callable
from typing import Any

import obvious
import torch
from common import Level, answer, load_network, load_tokens, parse, read_job, timed
from floor import SHARED
from torch import Tensor, nn

from llmkick import parse_recipe
from llmkick.compression.kernels.factor import HessianFactor, factorise
from llmkick.compression.kernels.gptq import gptq
from llmkick.compression.kernels.sparsegpt import sparsegpt
from llmkick.compression.kernels.wanda import wanda
from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.weight import relative_output_error

SEQUENCES = 8  # enough for an H that is far from singular: 8 × 512 tokens, 1,536 inputs


@torch.no_grad()
def inputs_of_block(job: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights {name: (out, in)} of the middle block and their inputs {name: (tokens, in)}, float32."""
    network = load_network(job)
    block = network.model.layers[len(network.model.layers) // 2]
    layers = {name.rsplit(".", 1)[-1]: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _m, given, name=name: seen[name].append(given[0][0].clone()))
        for name, layer in layers.items()
    ]
    for window in torch.from_numpy(load_tokens(job)[:SEQUENCES]):
        network.model(input_ids=window.unsqueeze(0), use_cache=False)
    for handle in handles:
        handle.remove()
    return {n: m.weight.detach().clone() for n, m in layers.items()}, {n: torch.cat(x) for n, x in seen.items()}


def our_solve(weight: Tensor, factor: HessianFactor, recipe: Recipe) -> Tensor:
    if recipe.method == "sparsegpt":
        return sparsegpt(weight, factor, recipe.pattern)[0]
    return gptq(weight, factor, recipe.grid)[0]


def race(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of each, the least of some runs in turn: noise only ever adds."""
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        for side in (0, 1) if number % 2 else (1, 0):
            times[side].append(timed((ours, theirs)[side])[0])
    return min(times[0]), min(times[1])


def wanda_row(name: str, weight: Tensor, rows: Tensor, level: Level, recipe: Recipe, repeats: int) -> dict[str, Any]:
    squares = rows.square().sum(0)
    mine = wanda(weight, squares, recipe.pattern)
    plain = obvious.wanda(weight, squares, level.sparsity)
    ours, theirs = race(
        lambda: wanda(weight, squares, recipe.pattern),
        lambda: obvious.wanda(weight, squares, level.sparsity),
        repeats,
    )
    return _row(name, weight, "scores and mask", ours, theirs, error_of(weight, rows, mine, plain))


def _row(
    name: str, weight: Tensor, part: str, ours: float, theirs: float, errors: list[float] | None
) -> dict[str, Any]:
    return {
        "layer": f"{name} {'×'.join(map(str, weight.shape))}",
        "part": part,
        "ours": ours,
        "obvious": theirs,
        "errors": errors,
    }


def error_of(weight: Tensor, rows: Tensor, *compressed: Tensor) -> list[float]:
    """Relative output error of each."""
    return [relative_output_error(weight, each, rows) or 0.0 for each in compressed]


def solve_rows(name: str, weight: Tensor, rows: Tensor, level: Level, recipe: Recipe, repeats: int) -> list[Any]:
    hessian = rows.T @ rows  # its scale changes nothing
    factor, upper = factorise(hessian), obvious.factor(hessian)
    errors = error_of(weight, rows, our_solve(weight, factor, recipe), obvious.solve(weight, hessian, level, upper))
    without = race(
        lambda: our_solve(weight, factor, recipe), lambda: obvious.solve(weight, hessian, level, upper), repeats
    )
    making = race(lambda: factorise(hessian), lambda: obvious.factor(hessian), repeats)
    whole = race(
        lambda: our_solve(weight, factorise(hessian), recipe), lambda: obvious.solve(weight, hessian, level), repeats
    )
    return [
        _row(name, weight, "factorisation", *making, None),
        _row(name, weight, "columns", *without, None),
        _row(name, weight, "both", *whole, errors),
    ]


def block_row(
    weights: dict[str, Tensor], inputs: dict[str, Tensor], level: Level, recipe: Recipe, repeats: int
) -> dict[str, Any]:
    hessians = {name: rows.T @ rows for name, rows in inputs.items()}

    def ours() -> None:
        for names in SHARED:
            factor = factorise(hessians[names[0]])
            for name in names:
                our_solve(weights[name], factor, recipe)

    def theirs() -> None:
        for name, weight in weights.items():
            obvious.solve(weight, hessians[name], level)

    mine, plain = race(ours, theirs, repeats)
    return {"layer": "block, 7 linears", "part": "both", "ours": mine, "obvious": plain, "errors": None}


@torch.no_grad()
def main() -> None:
    job = read_job()
    weights, inputs = inputs_of_block(job)
    rows = {}
    for text in job["recipes"]:
        level, recipe = parse(text), parse_recipe(text)
        rows[text] = []
        for name in ("gate_proj", "down_proj"):
            if level.method == "wanda":
                rows[text].append(wanda_row(name, weights[name], inputs[name], level, recipe, job["repeats"]))
            else:
                rows[text] += solve_rows(name, weights[name], inputs[name], level, recipe, job["repeats"])
        if level.method != "wanda":
            rows[text].append(block_row(weights, inputs, level, recipe, job["repeats"]))
    answer(job, rows=rows)


if __name__ == "__main__":
    main()
