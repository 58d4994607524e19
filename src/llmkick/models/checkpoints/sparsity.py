"""Detection of pruning by other tools: the zeros in a network's weights and their N:M pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# Group sizes M that hardware and papers use.
GROUPS = (2, 4, 8, 16)
# A layer with a smaller share of zeros was not pruned: rounding makes some zeros too.
PRUNED = 0.25


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """Number and share of exact zeros in the linear layers (without heads and embeddings), and their pattern.

    `pattern` is for example "2:4" when every pruned layer follows it, "mixed" when they follow different patterns,
    "unstructured" when a pruned layer follows none, empty when no layer is pruned. `layers` counts the linear layers.
    """

    count: int
    share: float
    pattern: str
    pruned_layers: int
    layers: int


def zeros_of(network: Any) -> Zeros | None:
    """The zeros in a network; None where it has no plain linear weights, but packed integers."""
    patterns: Counter[str] = Counter()
    zeros = total = layers = 0
    for weight in linear_weights(network):
        count = int((weight == 0).sum())
        zeros, total, layers = zeros + count, total + weight.numel(), layers + 1
        if count >= PRUNED * weight.numel():
            patterns[pattern_of(weight) or "unstructured"] += 1
    if not total:
        return None
    names = set(patterns)
    pattern = "" if not names else names.pop() if len(names) == 1 else "mixed"
    if "unstructured" in patterns:
        pattern = "unstructured"
    return Zeros(count=zeros, share=zeros / total, pattern=pattern, pruned_layers=patterns.total(), layers=layers)


def linear_weights(network: Any) -> Iterator[torch.Tensor]:
    """The floating-point weights of linear layers, (out, in); experts that share a tensor one by one."""
    head = network.get_output_embeddings()
    for module in network.modules():
        if module is head:
            continue
        weight = getattr(module, "weight", None)
        if isinstance(module, Conv1D):
            yield module.weight.detach().T
        elif isinstance(module, nn.Linear):
            # Packed weights have integer types, or classes of their own.
            if type(weight) is nn.Parameter and weight.is_floating_point():
                yield weight.detach()
        elif not isinstance(module, nn.Embedding):
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 3 and parameter.is_floating_point():
                    yield from parameter.detach()


def pattern_of(weight: torch.Tensor) -> str:
    """The sparsest N:M pattern that a layer follows along its inputs, with the smallest M; empty when it follows none.

    (out, in): at most N of every M consecutive inputs are not zero, in every row.
    """
    patterns: list[tuple[float, int, int]] = []
    for group in GROUPS:
        if weight.shape[-1] % group:
            continue
        kept = int((weight.reshape(-1, group) != 0).sum(dim=1).max())
        if 0 < kept < group:
            patterns.append((kept / group, group, kept))
    if not patterns:
        return ""
    _, group, kept = min(patterns)
    return f"{kept}:{group}"
