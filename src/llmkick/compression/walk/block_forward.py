"""Running one decoder block as the network would run it, and observing the inputs of its linear layers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from llmkick.compression.walk.blocks import Block, LinearLayer
from llmkick.compression.walk.causal_attention import CausalByPieces
from llmkick.errors import ModelError

InputCallback = Callable[[LinearLayer, Tensor], None]


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
                raise _ForwardEnded(None)

        return hook


class _ExpertCalls(TorchFunctionMode):
    """Observes every F.linear whose weight is a slice of an experts parameter."""

    def __init__(self, experts: list[LinearLayer], callback: InputCallback) -> None:
        super().__init__()
        self._by_address = {layer.weight.data_ptr(): layer for layer in experts}
        self._callback = callback

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and isinstance(args[1], Tensor):
            layer = self._by_address.get(args[1].data_ptr())
            if layer is not None:
                self._callback(layer, args[0])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def experts_one_by_one(network: nn.Module) -> Iterator[None]:
    """Run experts in the plain loop of F.linear calls, the only implementation whose inputs can be recorded."""
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


class _ForwardEnded(Exception):  # noqa: N818 - not an error: it ends a forward early
    """Raised inside a forward when the block has run, or as much of it as is needed; `output` is the block's."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class BlockRunner:
    """Runs one decoder block on given hidden states, with all arguments that the network itself would pass.

    It starts a forward of the whole network in which the blocks before are replaced by functions that return their
    input, and ends it after the block. Positions, masks and per-layer inputs come from the network, so they are right
    for any architecture. The cost beyond the block itself is an embedding look-up.
    """

    def __init__(self, network: nn.Module, blocks: list[Block]) -> None:
        self._network = network
        self._blocks = blocks
        self._extra_outputs: int | None = None  # blocks of some architectures return (states, None, …)
        self._thread = threading.local()

    @contextlib.contextmanager
    def only(self, index: int) -> Iterator[Callable[[Tensor, Tensor | None], Tensor | None]]:
        """A function that runs block `index`, in any thread: (ids, hidden) → the block's output.

        ids: (sequences, tokens). hidden: the states that the block is given, None for the output of the embeddings.
        Output: (sequences, tokens, width), None when the forward ended inside the block. The function raises
        ModelError when the network does not run the block.
        """
        run_block = self._blocks[index].module.forward

        def pass_through(*arguments: Any, **keywords: Any) -> Any:
            states = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
            return (states, *[None] * self._extra_outputs) if self._extra_outputs is not None else states

        def run_and_end(*arguments: Any, **keywords: Any) -> Any:
            hidden = self._thread.hidden
            if hidden is not None and "hidden_states" in keywords:
                keywords["hidden_states"] = hidden
            elif hidden is not None:
                arguments = (hidden, *arguments[1:])
            raise _ForwardEnded(run_block(*arguments, **keywords))

        def run(ids: Tensor, hidden: Tensor | None) -> Tensor | None:
            self._thread.hidden = hidden
            try:
                with CausalByPieces():
                    self._network(input_ids=ids, use_cache=False)
            except _ForwardEnded as ended:
                return self._states(ended.output)
            finally:
                del self._thread.hidden
            raise ModelError(f"the network never ran its block {self._blocks[index].name}")

        with _replaced_forwards(self._blocks[: index + 1], [pass_through] * index + [run_and_end]):
            yield run

    def _states(self, output: Any) -> Tensor | None:
        if output is None:
            return None
        if isinstance(output, tuple | list):
            self._extra_outputs = len(output) - 1
            output = output[0]
        assert isinstance(output, Tensor), type(output)
        return output


@contextlib.contextmanager
def _replaced_forwards(blocks: list[Block], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    # accelerate sets a `forward` on the module itself when it moves inputs to its device: put that back afterwards.
    forwards_before = [block.module.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.module.forward = forward
        yield
    finally:
        for block, before in zip(blocks, forwards_before, strict=True):
            block.module.__dict__.pop("forward", None)
            if before is not None:
                block.module.forward = before
