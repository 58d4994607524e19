"""The network that is trained: the compressed one, frozen, with a LoRA adapter on each of its linear layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.errors import ConfigError, ModelError
from llmkick.models.low_rank import Adapter, adapter_of, merged

ADAPTER = "default"  # peft's name of the only adapter


@dataclass(frozen=True, kw_only=True)
class AdaptedLayer:
    """A layer of the compressed network, and the module of peft in its place in the copy that is trained.

    mask: (out, in) bool, the weights that are not 0; None where the adapter is kept beside the weight.
    """

    layer: LinearLayer
    module: Any
    mask: Tensor | None

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """B (out, rank) and A (rank, in)."""
        return self.module.lora_B[ADAPTER].weight, self.module.lora_A[ADAPTER].weight

    def result(self) -> tuple[Tensor, Adapter | None]:
        """The recovered weight (out, in), and the adapter if it is kept; where the product is 0, bits stay."""
        weight = self.layer.weight
        b, a = (factor.detach() for factor in self.factors)
        if self.mask is None:
            adapter = adapter_of(b, a, weight.dtype)
            return merged(weight, adapter), adapter
        change = (b @ a).masked_fill(~self.mask, 0)
        return torch.where(change == 0, weight, (weight.float() + change).to(weight.dtype)), None


class Student:
    """A copy of a compressed network that shares its weights, with adapters that begin at B = 0.

    keeps_adapters: adapters stay beside the weights, which lie on a grid; otherwise they are merged, and act only on
    the weights that are not 0, in training as in the result (arXiv 2312.15230). skip: layers that stay as they are.
    notes: what is left without an adapter. Raises ModelError for a network none of whose layers can have one.
    """

    def __init__(self, network: nn.Module, *, rank: int, keeps_adapters: bool, seed: int, skip: Sequence[str]) -> None:
        peft = import_peft()
        self.notes: list[str] = []
        layers = [
            layer for block in decoder_blocks(network) for layer in block.layers
            if layer.name not in skip and self._can_have_one(layer)
        ]  # fmt: skip
        if not layers:
            raise ModelError(f"{type(network).__name__} has no plain linear layer, so lora has nothing to train")
        self.network: Any = shallow_copy(network)
        self._flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        settings = peft.LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=[layer.name for layer in layers]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the adapters of Conv1D are transposed, which they have to be
            peft.inject_adapter_in_model(settings, self.network)
        self.layers = [self._adapted(layer, keeps_adapters=keeps_adapters) for layer in layers]
        self._draw(torch.Generator().manual_seed(seed))

    def _can_have_one(self, layer: LinearLayer) -> bool:
        if layer.form == "expert" or layer.twins:
            kind = "experts in one parameter" if layer.form == "expert" else "a weight that several blocks share"
            note = f"lora leaves {layer.place.parameter} as it was compressed: {kind}"
            self.notes += [] if note in self.notes else [note]
            return False
        return True

    def _adapted(self, layer: LinearLayer, *, keeps_adapters: bool) -> AdaptedLayer:
        module: Any = self.network.get_submodule(layer.name)
        mask = None if keeps_adapters else layer.weight != 0
        adapted = AdaptedLayer(layer=layer, module=module, mask=mask)
        for factor in adapted.factors:
            factor.data = factor.data.float().to(layer.weight.device)
        if mask is not None:
            module.forward = _masked_forward(adapted, mask)
        return adapted

    def _draw(self, generator: torch.Generator) -> None:
        """A as in the LoRA of peft, from a generator of its own, and B = 0."""
        for adapted in self.layers:
            b, a = adapted.factors
            bound = 1 / math.sqrt(a.shape[1])
            drawn = torch.empty(a.shape).uniform_(-bound, bound, generator=generator)
            a.data.copy_(drawn)
            b.data.zero_()

    @property
    def has_float16(self) -> bool:
        """Whether gradients pass through float16, where small ones become 0."""
        return any(parameter.dtype == torch.float16 for parameter in self.network.parameters())

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained matrices by name, always in the same order."""
        names = ((f"{adapted.layer.name}.{kind}", adapted) for adapted in self.layers for kind in ("b", "a"))
        return {name: adapted.factors[0 if name.endswith(".b") else 1] for name, adapted in names}  # type: ignore[misc]

    def results(self) -> Iterator[tuple[LinearLayer, Tensor, Adapter | None]]:
        """The layers with their recovered weights, and the adapters that are kept."""
        for adapted in self.layers:
            yield adapted.layer, *adapted.result()

    def release(self) -> None:
        """Give the shared weights back their flags, which peft has changed."""
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


def import_peft() -> Any:
    """The package peft. Raises ConfigError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("the recovery lora needs a package: pip install 'llmkick[recover]'") from error
    return peft


def _masked_forward(adapted: AdaptedLayer, mask: Tensor) -> Callable[..., Tensor]:
    """A forward of the layer with the weight that the merge will give, so that the training sees what is kept."""
    bias: Tensor | None = adapted.module.base_layer.bias
    weight = adapted.layer.weight

    def forward(inputs: Tensor, *_: Any, **__: Any) -> Tensor:
        output: Tensor = MaskedLinear.apply(inputs, weight, mask, *adapted.factors)  # type: ignore[no-untyped-call]
        return output if bias is None else output + bias

    return forward


class MaskedLinear(torch.autograd.Function):
    """inputs · (W + mask ∘ BA)ᵀ, with gradients of the inputs, B and A.

    By hand, because autograd would keep and pass over several matrices of the size of W for every layer.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, mask: Tensor, b: Tensor, a: Tensor) -> Tensor:
        """(…, in), (out, in) twice, (out, rank), (rank, in) → (…, out)."""
        changed = (b @ a).mul_(mask).add_(weight).to(weight.dtype)
        ctx.save_for_backward(inputs, changed, mask, b, a)
        return F.linear(inputs, changed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the arguments of `forward`, of the weight and the mask None."""
        inputs, changed, mask, b, a = ctx.saved_tensors
        (gradient,) = gradients
        of_inputs = gradient @ changed if ctx.needs_input_grad[0] else None
        of_product = (gradient.flatten(0, -2).mT @ inputs.flatten(0, -2)).float().mul_(mask)
        return of_inputs, None, None, of_product @ a.mT, b.mT @ of_product
