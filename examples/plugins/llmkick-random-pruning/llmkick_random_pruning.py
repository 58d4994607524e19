"""Random pruning: the weights to zero are drawn by lot. What every other method must beat."""

import hashlib
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.kernels.layer import Layer
from llmkick.compression.kernels.masks import zero_lowest_per_group, zero_lowest_per_row
from llmkick.compression.kernels.patterns import NM, Pattern
from llmkick.compression.levels import parse_pattern
from llmkick.compression.methods import Method
from llmkick.compression.recipe import Recipe
from llmkick.errors import ConfigError

EXAMPLES = ("random@0.5", "random@2:4", "random@0.5-seed7", "random@0.5+gptq@4b")


@dataclass(frozen=True, kw_only=True)
class Random(Recipe):
    """Zero weights drawn by lot; another seed draws others."""

    name = "random"

    pattern: Pattern
    seed: int = 0

    def __str__(self) -> str:
        return super().__str__() + (f"-seed{self.seed}" if self.seed else "")


def parse(level: str) -> Random:
    """`0.5`, `2:4`, `0.5-seed7`: whatever stands behind `random@`."""
    pattern, option, seed = level.partition("-seed")
    if option and not re.fullmatch("[0-9]{1,9}", seed):
        raise ConfigError(f"seed {seed!r} of random is not a whole number (as in random@0.5-seed7)")
    return Random(pattern=parse_pattern("random", pattern, EXAMPLES), seed=int(seed or 0))


def random_pruning(weight: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
    """Zero weights drawn by lot, as many in every row or N:M group: (out, in) → (out, in)."""
    scores = torch.rand(weight.shape, generator=generator).to(weight.device)
    if isinstance(pattern, NM):
        zeroed = zero_lowest_per_group(scores, pattern)
    else:
        zeroed = zero_lowest_per_row(scores, int(weight.shape[1] * pattern.sparsity))
    return weight.masked_fill(zeroed, 0)


def compress(recipe: Random, layer: Layer) -> Tensor:
    """Carry out a recipe on one layer. Every layer has a lot of its own, the same in every run."""
    digest = hashlib.sha256(f"{recipe.seed} {layer.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return random_pruning(layer.weight, recipe.pattern, generator)


METHOD = Method(summary="zero weights drawn by lot", examples=EXAMPLES, parse=parse, kernel=compress)
