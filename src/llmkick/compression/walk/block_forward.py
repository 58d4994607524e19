"""Running one decoder block as the network would, and seeing what its linear layers are given."""

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

Seen = Callable[[LinearLayer, Tensor], None]


class InputHooks:
    """While this context lasts, whichever thread runs the layers may see what they are given (`seen_by`).

    With `last` a forward that is seen ends before the layer of that name would run: nothing after it is recorded, and
    a caller who only records need not pay for it.
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
    def seen_by(self, seen: Seen) -> Iterator[None]:
        """Call `seen(layer, inputs)` whenever a layer runs in this thread; inputs (..., in) as the layer got them."""
        self._thread.seen = seen
        try:
            with _ExpertCalls(self._experts, seen) if self._experts else contextlib.nullcontext():
                yield
        finally:
            del self._thread.seen

    def _hook_for(self, layer: LinearLayer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen = getattr(self._thread, "seen", None)
            if seen is None:
                return
            seen(layer, arguments[0])
            if layer.name == self._last:
                raise _BlockReached(None)

        return hook


class _ExpertCalls(TorchFunctionMode):
    """Sees every F.linear whose weight is a slice of an experts parameter."""

    def __init__(self, experts: list[LinearLayer], seen: Seen) -> None:
        super().__init__()
        self._by_address = {layer.weight.data_ptr(): layer for layer in experts}
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and isinstance(args[1], Tensor):
            layer = self._by_address.get(args[1].data_ptr())
            if layer is not None:
                self._seen(layer, args[0])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def experts_one_by_one(network: nn.Module) -> Iterator[None]:
    """Run experts in the plain loop of F.linear calls, the only form whose inputs can be recorded."""
    change: Any = getattr(network, "set_experts_implementation", None)
    if change is None or not network._can_set_experts_implementation():  # type: ignore[operator]
        yield
        return
    before = network.get_experts_implementation()  # type: ignore[operator]
    change("eager")
    try:
        yield
    finally:
        change(before)


class _BlockReached(Exception):  # noqa: N818 - not an error: it ends a forward early
    """Raised inside a forward once the block of interest has run, or as much of it as is wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class BlockRunner:
    """Runs one decoder block on given hidden states, with every argument the network itself would pass.

    A forward of the whole network is made in which the blocks before are replaced by ones that hand the
    states on, and which ends after the block: positions, masks and per-layer inputs come from the network,
    so they are right for any architecture. What it costs beyond the block is an embedding look-up.
    """

    def __init__(self, network: nn.Module, blocks: list[Block]) -> None:
        self._network = network
        self._blocks = blocks
        self._extra_outputs: int | None = None  # blocks of some architectures return (states, None, …)
        self._thread = threading.local()

    @contextlib.contextmanager
    def only(self, index: int) -> Iterator[Callable[[Tensor, Tensor | None], Tensor | None]]:
        """A function that runs block `index`, in any thread: (ids, hidden) → the block's output.

        ids: (sequences, tokens); hidden: the block's input states, None for the embeddings' output; output: (sequences,
        tokens, width), None when the forward ended inside the block.
        """
        run_block = self._blocks[index].module.forward

        def passing(*arguments: Any, **keywords: Any) -> Any:
            states = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
            return (states, *[None] * self._extra_outputs) if self._extra_outputs is not None else states

        def entering(*arguments: Any, **keywords: Any) -> Any:
            hidden = self._thread.hidden
            if hidden is not None and "hidden_states" in keywords:
                keywords["hidden_states"] = hidden
            elif hidden is not None:
                arguments = (hidden, *arguments[1:])
            raise _BlockReached(run_block(*arguments, **keywords))

        def run(ids: Tensor, hidden: Tensor | None) -> Tensor | None:
            self._thread.hidden = hidden
            try:
                with CausalByPieces():
                    self._network(input_ids=ids, use_cache=False)
            except _BlockReached as reached:
                return self._states(reached.output)
            finally:
                del self._thread.hidden
            raise ModelError(f"the network never ran its block {self._blocks[index].name}")

        with _replaced_forwards(self._blocks[: index + 1], [passing] * index + [entering]):
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
    # A forward of its own is what accelerate gives a module that it carries inputs to, from another device.
    own = [block.module.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.module.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.module.__dict__.pop("forward", None)
            if before is not None:
                block.module.forward = before
