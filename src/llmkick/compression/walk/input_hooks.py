"""Observing the inputs of linear layers while a network runs, those of experts included."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.errors import ModelError

InputCallback = Callable[[LinearLayer, Tensor], None]

# Products of inputs with a matrix (in, out) or with many of them.
_PRODUCTS = {
    *(torch.matmul, torch.mm, torch.bmm),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__),
}


class ForwardEnded(Exception):  # noqa: N818 - not an error: it ends a forward early
    """Raised inside a forward when as much of it has run as is needed; `output` is for its caller."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class InputHooks:
    """While this context lasts, a thread can observe the inputs of the layers that it runs, see `calling`.

    With `last` an observed forward ends before the layer of that name would run: a caller who only records inputs does
    not pay for the rest of the block.
    """

    def __init__(self, layers: tuple[LinearLayer, ...], *, last: str | None = None) -> None:
        self._plain = [layer for layer in layers if layer.form != "expert"]
        self._experts = [layer for layer in layers if layer.form == "expert"]
        self._last = last
        self._thread = threading.local()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [layer.module.register_forward_pre_hook(self._hook_for(layer)) for layer in self._plain]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def calling(self, callback: InputCallback) -> Iterator[None]:
        """Call `callback(layer, inputs)` whenever a layer runs in this thread, with its inputs (..., in)."""
        self._thread.callback = callback
        try:
            with _ExpertCalls(self._experts, callback) if self._experts else contextlib.nullcontext():
                yield
        finally:
            del self._thread.callback

    def _hook_for(self, layer: LinearLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            callback = getattr(self._thread, "callback", None)
            if callback is None:
                return
            callback(layer, arguments[0])
            if layer.name == self._last:
                raise ForwardEnded(None)

        return hook


class _ExpertCalls(TorchFunctionMode):
    """Observes every product with a slice of an experts' parameter, or with all of it at once."""

    def __init__(self, experts: list[LinearLayer], callback: InputCallback) -> None:
        super().__init__()
        self._by_address = {layer.weight.data_ptr(): layer for layer in experts}
        self._together: dict[int, list[LinearLayer]] = {}
        for layer in experts:
            self._together.setdefault(layer.stored.data_ptr(), []).append(layer)
        self._callback = callback

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (func is F.linear or func in _PRODUCTS) and len(args) > 1 and isinstance(args[1], Tensor):
            self._observe(args[0], args[1].mT if func is F.linear and args[1].dim() > 1 else args[1])
            self._observe_columns(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _observe(self, inputs: Tensor, weight: Tensor) -> None:
        """A product of inputs (..., in) with a matrix (in, out), or of (experts, tokens, in) with many of them."""
        address = weight.data_ptr()
        if weight.dim() == 2 and address in self._by_address:
            self._call(self._by_address[address], inputs, weight)
        elif weight.dim() == 3 and len(weight) == len(self._together.get(address, ())):
            for number, layer in enumerate(self._together[address]):
                given = inputs if inputs.dim() == 2 else inputs[number]
                # A token that is not routed to an expert enters it as zeros.
                rows = given[(given != 0).any(dim=-1)]
                if len(rows):
                    self._call(layer, rows, weight[number])

    def _observe_columns(self, weight: Tensor, inputs: Tensor) -> None:
        """A product of matrices (heads, 1, out, in) with inputs (heads, sequences, in, tokens)."""
        layers = self._together.get(weight.data_ptr(), ())
        if weight.dim() == 4 and len(weight) == len(layers) == len(inputs):
            for layer, matrix, given in zip(layers, weight, inputs, strict=True):
                self._call(layer, given.mT, matrix[0].t())

    def _call(self, layer: LinearLayer, inputs: Tensor, weight: Tensor) -> None:
        ours = layer.weight.t()
        if weight.shape != ours.shape or (weight.stride() != ours.stride() and 1 not in weight.shape):
            raise ModelError(
                f"{layer.name}: the network multiplies by it as (in, out) = {tuple(weight.shape)} with steps of "
                f"{weight.stride()}, not {tuple(ours.shape)} with {ours.stride()}: its layout is not known here"
            )
        self._callback(layer, inputs)


@contextlib.contextmanager
def experts_one_by_one(network: nn.Module) -> Iterator[None]:
    """Run experts in the plain loop of products, the only implementation whose inputs can be recorded."""
    set_implementation: Any = getattr(network, "set_experts_implementation", None)
    if set_implementation is None or not network._can_set_experts_implementation():  # type: ignore[operator]
        yield
        return
    before = network.get_experts_implementation()  # type: ignore[operator]
    set_implementation("eager")
    try:
        yield
    finally:
        set_implementation(before)
