"""Compressions of a random model: seconds of each stage beside the least that they could take."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_machine import Machine, synchronise
from gpu_model import random_model
from llama_shape import Shape
from peers.floor import floor

from llmkick.compression.kernels import hessian
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk import calibration_pass, inputs, recipe_output
from llmkick.compression.walk import compress as walk

RECIPES = ("magnitude@0.5", "rtn@4b-g128", "wanda@0.5", "wanda@2:4", "sparsegpt@0.5", "sparsegpt@2:4",
           "gptq@4b", "gptq@4b-g128")  # fmt: skip
# Where a stage begins and ends: a name, and the owner and the name of a function that does nothing else.
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("forwards", calibration_pass.CalibrationPass, "record"),
    ("forwards", calibration_pass.CalibrationPass, "advance"),
    ("statistics", inputs.InputRecord, "add"),
    ("factors", hessian.InputStatistics, "factor"),
    ("factors", hessian, "factors_together"),
    ("weights", recipe_output, "compress_with_statistics"),
    ("weights", recipe_output, "compress_alike"),
    ("error", recipe_output, "output_squares"),
    ("digest", walk, "weights_digest"),
)


@dataclass
class Stages:
    """Seconds of each stage, without those of the stages inside it."""

    device: torch.device
    seconds: Counter[str] = field(default_factory=Counter)  # type: ignore[type-arg]
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def _switch(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this stage."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """All stages are timed while this lasts."""
        with contextlib.ExitStack() as stack:
            for name, owner, function in STAGES:
                stack.enter_context(mock.patch.object(owner, function, self._timed(name, getattr(owner, function))))
            stack.enter_context(self.stage("rest"))
            yield

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return timed


# Part of the floor → the stage in which it is done.
STAGE_OF_PART = {
    "forwards": "forwards", "Σ x²": "statistics", "H": "statistics", "factors": "factors", "masks": "weights",
    "columns": "weights",
}  # fmt: skip


def least_seconds(recipe: str, shape: Shape, options: argparse.Namespace, machine: Machine) -> dict[str, float]:
    """The floor by stage: each part at the best speed of arithmetic, or of memory where that takes longer."""
    parsed = parse_recipe(recipe)
    if not parsed.needs_calibration:
        return {"weights": 2 * 2 * shape.block_weights / machine.bandwidth}  # each weight read and written
    method = "wanda" if not parsed.needs_hessian else "solve"
    sizes = {"sequences": options.sequences, "length": options.length, "dtype": "bfloat16"}
    parts = floor(method, shape.layers(), shape.blocks, **sizes)
    # Tensor cores make H of inputs in bfloat16.
    parts = [replace(part, dtype="bfloat16") if part.name == "H" else part for part in parts]
    floors: Counter[str] = Counter()
    for part in parts:
        floors[STAGE_OF_PART[part.name]] += part.seconds(machine.flops, machine.bandwidth)
    return dict(floors)


def compression_part(
    whole: Shape, options: argparse.Namespace, machine: Machine, until: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Some blocks of the model, compressed by each recipe that can begin before `until`, at least one."""
    shape = whole.with_blocks(options.blocks)
    model = random_model(shape, machine.device)
    tokens = np.random.default_rng(0).integers(2, 258, (options.sequences, options.length))
    results, left_out = [], []
    for recipe in options.recipes.split(",") if options.recipes else RECIPES:
        if results and time.perf_counter() > until:
            left_out.append(recipe)
            continue
        for warm in (True, False):  # the first run compiles kernels, and plans products
            stages = Stages(machine.device)
            some = tokens[: max(1, len(tokens) // 16)] if warm else tokens
            with stages.observed():
                walk.compress(model, recipe, calibration=some)
        seconds, floors = sum(stages.seconds.values()), least_seconds(recipe, shape, options, machine)
        results.append(
            {
                "recipe": recipe,
                "seconds": seconds,
                "floor": sum(floors.values()),
                "floors": floors,
                "seconds_of_all_blocks": seconds * whole.blocks / shape.blocks,
                "stages": {name: stages.seconds[name] for name in [*dict.fromkeys(s[0] for s in STAGES), "rest"]},
            }
        )
        say(f"{recipe}: {seconds:.2f} s")
    sizes = {"blocks": shape.blocks, "sequences": options.sequences, "length": options.length}
    return {**sizes, "recipes": results, "left_out": left_out}
