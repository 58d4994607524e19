"""Which weights of a network a compression leaves as they are: the only place that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from llmkick.compression.walk.blocks import Block


def names_outside_layers(network: Any, blocks: Sequence[Block]) -> list[str]:
    """Names in the state dict of all tensors that no linear layer of a block holds, without twins of tied weights.

    Embeddings, the output head unless it is tied to them, and the norms, biases and routers of the blocks.
    """
    layers = {layer.place.parameter for block in blocks for layer in block.layers}
    return [name for name in _untied_names(network) if name not in layers]


def names_outside_blocks(network: Any, blocks: Sequence[Block]) -> list[str]:
    """Names in the state dict of all tensors that are in no block, without twins of tied weights."""
    inside = tuple(f"{block.name}." for block in blocks)
    return [name for name in _untied_names(network) if not name.startswith(inside)]


def output_heads(network: Any) -> list[str]:
    """The names of the output head among the network's modules; it never runs while blocks are calibrated."""
    head: nn.Module | None = network.get_output_embeddings()
    return [name for name, module in network.named_modules() if module is head]


def _untied_names(network: Any) -> list[str]:
    twins = network.all_tied_weights_keys
    return [name for name in network.state_dict() if name not in twins]
