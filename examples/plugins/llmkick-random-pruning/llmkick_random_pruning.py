"""Random pruning: the baseline that every other pruning method must beat."""

import hashlib
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.extend import (
    NM,
    ConfigError,
    Layer,
    Method,
    Pattern,
    Recipe,
    parse_pattern,
    zero_lowest_per_group,
    zero_lowest_per_row,
)

EXAMPLES = ("random@0.5", "random@2:4", "random@0.5-seed7", "random@0.5+gptq@4b")


@dataclass(frozen=True, kw_only=True)
class Random(Recipe):
    """Zero randomly chosen weights; another seed chooses others."""

    name = "random"

    pattern: Pattern
    seed: int = 0

    def __str__(self) -> str:
        return super().__str__() + (f"-seed{self.seed}" if self.seed else "")


def parse(level: str) -> Random:
    """Read a level, the text after `random@`: `0.5`, `2:4`, `0.5-seed7`."""
    pattern, option, seed = level.partition("-seed")
    if option and not re.fullmatch("[0-9]{1,9}", seed):
        raise ConfigError(f"seed {seed!r} of random is not a whole number (as in random@0.5-seed7)")
    return Random(pattern=parse_pattern("random", pattern, EXAMPLES), seed=int(seed or 0))


def random_pruning(weight: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
    """Zero the same number of randomly chosen weights in every row or N:M group: (out, in) → (out, in)."""
    scores = torch.rand(weight.shape, generator=generator).to(weight.device)
    if isinstance(pattern, NM):
        zeroed = zero_lowest_per_group(scores, pattern)
    else:
        zeroed = zero_lowest_per_row(scores, int(weight.shape[1] * pattern.sparsity))
    return weight.masked_fill(zeroed, 0)


def compress(recipe: Random, layer: Layer) -> Tensor:
    """Apply the recipe to one layer. Each layer has its own seed, which is the same in every run."""
    digest = hashlib.sha256(f"{recipe.seed} {layer.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return random_pruning(layer.weight, recipe.pattern, generator)


METHOD = Method(summary="zero randomly chosen weights", examples=EXAMPLES, parse=parse, kernel=compress)
