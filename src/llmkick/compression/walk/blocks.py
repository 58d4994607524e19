"""Decoder blocks and their linear layers, for any decoder architecture of transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from llmkick.compression.walk.block_list import find_blocks, text_config
from llmkick.compression.walk.experts import expert_layout, expert_lists, expert_role, is_bias, mixtures
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.routers import router_modules


@dataclass(frozen=True, kw_only=True)
class DenseMatrix:
    """A matrix or larger tensor of a block that is left dense, and why."""

    name: str
    weights: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Block:
    """A decoder block, its linear layers, and what is left dense in it.

    layers: without those whose weight belongs to a layer of an earlier block, of which they are `twins`. routers: names
    of the routers' weights. dense: other matrices that are no linear layers.
    """

    name: str
    module: nn.Module
    layers: tuple[LinearLayer, ...]
    routers: tuple[DenseMatrix, ...] = ()
    dense: tuple[DenseMatrix, ...] = ()


def decoder_blocks(network: nn.Module) -> list[Block]:
    """The decoder blocks of a network, in the order in which they run.

    Raises ModelError when they cannot be told, or cannot be compressed one after another.
    """
    width = getattr(text_config(network), "hidden_size", None)
    name, modules = find_blocks(network)
    blocks = [_block(f"{name}.{index}", module, width) for index, module in enumerate(modules)]
    return _with_twins(blocks, network)


def _block(name: str, module: nn.Module, width: int | None) -> Block:
    routers, lists = router_modules(module, mixtures(module, width)), expert_lists(module)
    layers: list[LinearLayer] = []
    left: dict[bool, list[DenseMatrix]] = {True: [], False: []}  # in a router or not
    for inner_name, inner in module.named_modules():
        full = f"{name}.{inner_name}" if inner_name else name
        layers_inside = [] if inner_name in routers else list(_layers(full, inner, width))
        role = expert_role(inner_name, lists)
        layers += [replace(layer, role=role) if role and layer.form != "expert" else layer for layer in layers_inside]
        taken = {layer.parameter for layer in layers_inside}
        for key, parameter in inner.named_parameters(recurse=False):
            if parameter.dim() >= 2 and key not in taken and not is_bias(key):
                reason = "a router" if inner_name in routers else f"no linear layer, but a {type(inner).__name__}"
                left[inner_name in routers].append(
                    DenseMatrix(name=f"{full}.{key}", weights=parameter.numel(), reason=reason)
                )
    return Block(name=name, module=module, layers=tuple(layers), routers=tuple(left[True]), dense=tuple(left[False]))


def _layers(name: str, module: nn.Module, width: int | None) -> Iterator[LinearLayer]:
    """The linear layers that a module itself holds."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        groups = getattr(module, "n_groups", None)  # a block-diagonal layer: each group has inputs of its own
        if not isinstance(groups, int) or groups < 2:
            yield LinearLayer(name=name, module=module, form="linear")
            return
        rows = module.out_features // groups
        yield from _experts(name, module, "weight", count=groups, rows=rows)
    elif isinstance(module, Conv1D):
        yield LinearLayer(name=name, module=module, form="conv1d")
    else:
        for key, _ in module.named_parameters(recurse=False):
            layout = expert_layout(module, key, width)
            if layout is not None:
                yield from _experts(
                    name, module, key, count=layout.experts, rows=layout.rows, transposed=layout.transposed
                )


def _experts(
    name: str, module: nn.Module, key: str, *, count: int, rows: int | None, transposed: bool = False
) -> Iterator[LinearLayer]:
    for expert in range(count):
        yield LinearLayer(
            name=f"{name}.{key}.{expert}",
            module=module,
            form="expert",
            parameter=key,
            expert=expert,
            transposed=transposed,
            rows=rows,
        )


def _with_twins(blocks: list[Block], network: nn.Module) -> list[Block]:
    """The blocks, each shared weight as a layer of the first block that has it, with the others as its twins."""
    inside = {id(parameter) for block in blocks for parameter in block.module.parameters()}
    modules = {id(module) for block in blocks for module in block.module.modules()}
    elsewhere = {
        id(parameter)
        for module in network.modules()
        if id(module) not in modules
        for parameter in module.parameters(recurse=False)
    }
    places = sum(1 for block in blocks for _ in block.module.named_parameters(remove_duplicate=False))
    if not inside & elsewhere and len(inside) == places:
        return blocks
    twins: dict[tuple[int, int], list[LinearLayer]] = {}
    for layer in (layer for block in blocks for layer in block.layers):
        twins.setdefault((id(layer.stored), layer.expert), []).append(layer)
    return [_without_twins(block, twins, elsewhere) for block in blocks]


def _without_twins(block: Block, twins: dict[tuple[int, int], list[LinearLayer]], elsewhere: set[int]) -> Block:
    layers: list[LinearLayer] = []
    dense = list(block.dense)
    for layer in block.layers:
        first, *others = twins[id(layer.stored), layer.expert]
        if id(layer.stored) in elsewhere:
            reason = "shared with a part of the model outside the blocks"
            dense.append(DenseMatrix(name=layer.name, weights=layer.weight.numel(), reason=reason))
        elif first is layer:
            layers.append(replace(layer, twins=tuple(others)))
    return replace(block, layers=tuple(layers), dense=tuple(dense))


def shallow_copy(network: nn.Module) -> nn.Module:
    """A copy of the module tree that shares its parameters and buffers with the original.

    Replacing a layer's weight in the copy does not change the original, so that a compressed model needs memory for the
    changed weights only.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, dict(shared))
