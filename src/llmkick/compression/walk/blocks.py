"""Decoder blocks and their linear layers, for any decoder architecture of transformers.

A linear layer has a weight of shape (out, in), whatever its storage form: `nn.Linear`; GPT-2's `Conv1D`, stored
transposed; or an expert, whose weight is a slice of a parameter of shape (experts, out, in).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed import Place


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One weight matrix inside a block: the module and the parameter that store it, and in which form."""

    name: str
    module: nn.Module
    form: Literal["linear", "conv1d", "expert"]
    parameter: str = "weight"
    expert: int = 0

    @property
    def weight(self) -> Tensor:
        """The weight as (out, in); a view of the stored parameter."""
        stored: Tensor = getattr(self.module, self.parameter)
        if self.form == "expert":
            return stored[self.expert]
        return stored.t() if self.form == "conv1d" else stored

    @property
    def place(self) -> Place:
        """Where the weight is stored in the network's state dict."""
        if self.form == "expert":
            return Place(parameter=self.name.rpartition(".")[0], expert=self.expert)
        return Place(parameter=f"{self.name}.{self.parameter}", transposed=self.form == "conv1d")

    def replace_weight(self, weight: Tensor) -> None:
        """Store a new weight (out, in). The old tensor is not changed, because other networks may share it."""
        replace_weights([(self, weight)])


def replace_weights(weights: Iterable[tuple[LinearLayer, Tensor]]) -> None:
    """Store new weights (out, in). The old tensors are not changed, because other networks may share them."""
    copied: set[tuple[int, str]] = set()  # parameters of experts that are copies already
    for layer, weight in weights:
        stored: Tensor = getattr(layer.module, layer.parameter)
        if layer.form != "expert":
            new = (weight.t() if layer.form == "conv1d" else weight).to(stored.device, stored.dtype).contiguous()
        elif (id(layer.module), layer.parameter) in copied:
            stored.data[layer.expert] = weight.to(stored.device)
            continue
        else:
            copied.add((id(layer.module), layer.parameter))
            new = stored.detach().clone()
            new[layer.expert] = weight.to(stored.device)
        setattr(layer.module, layer.parameter, nn.Parameter(new, requires_grad=False))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A decoder block and its linear layers. skipped: the matrices that are left alone, each with the reason."""

    name: str
    module: nn.Module
    layers: tuple[LinearLayer, ...]
    skipped: tuple[str, ...]


def decoder_blocks(network: nn.Module) -> list[Block]:
    """The decoder blocks of a network, in the order in which they run.

    Raises ModelError when no list of blocks with linear layers can be found.
    """
    config = network.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    count = config.num_hidden_layers
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            blocks = [_block(f"{name}.{index}", block) for index, block in enumerate(module)]
            if any(block.layers for block in blocks):
                return blocks
    raise ModelError(
        f"no list of {count} decoder blocks with linear layers found in {type(network).__name__}: "
        "this architecture cannot be compressed here"
    )


def _block(name: str, module: nn.Module) -> Block:
    from transformers.pytorch_utils import Conv1D

    layers: list[LinearLayer] = []
    skipped: list[str] = []
    for inner_name, inner in module.named_modules():
        full = f"{name}.{inner_name}" if inner_name else name
        if isinstance(inner, nn.Linear):
            layers.append(LinearLayer(name=full, module=inner, form="linear"))
        elif isinstance(inner, Conv1D):
            layers.append(LinearLayer(name=full, module=inner, form="conv1d"))
        else:
            _add_parameters(full, inner, layers, skipped)
    return Block(name=name, module=module, layers=tuple(layers), skipped=tuple(skipped))


def _add_parameters(name: str, module: nn.Module, layers: list[LinearLayer], skipped: list[str]) -> None:
    """Add the experts of an (experts, out, in) parameter as layers, and name other matrices as skipped."""
    for key, parameter in module.named_parameters(recurse=False):
        if _holds_experts(module, parameter):
            layers += [
                LinearLayer(name=f"{name}.{key}.{expert}", module=module, form="expert", parameter=key, expert=expert)
                for expert in range(parameter.shape[0])
            ]
        elif parameter.dim() >= 2:
            skipped.append(f"{name}.{key}: a router or another matrix that is not a linear layer")


def _holds_experts(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is (experts, out, in): transformers marks the layout, JetMoE's module has the sizes."""
    layout = getattr(module, "is_transposed", None)
    sizes = tuple(getattr(module, name, None) for name in ("num_experts", "output_size", "input_size"))
    return parameter.dim() == 3 and (layout is False or (layout is None and tuple(parameter.shape) == sizes))


def shallow_copy(network: nn.Module) -> nn.Module:
    """A copy of the module tree that shares its parameters and buffers with the original.

    Replacing a layer's weight in the copy does not change the original, so that a compressed model needs memory for the
    changed weights only.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, dict(shared))
