"""Running one decoder block as the network would run it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.causal_attention import CausalByPieces
from llmkick.compression.walk.input_hooks import ForwardEnded
from llmkick.compression.walk.text_forward import text_forward
from llmkick.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class BlockOutput:
    """All that a block and those before it hand on to later blocks.

    states: the hidden states, (sequences, tokens, width) in most networks. extras: the other outputs of the block,
    where the next one uses them. kept: outputs of earlier blocks that are used later than in the next one. shared: what
    blocks have written into mappings that are passed along, such as keys and values that later blocks reuse.
    """

    states: Tensor
    extras: tuple[Any, ...] = ()
    kept: Mapping[int, Any] = field(default_factory=dict)
    shared: Mapping[Hashable, Mapping[Any, Any]] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but hidden states."""
        return not self.kept and not self.shared and all(extra is None for extra in self.extras)


class BlockRunner:
    """Runs one decoder block on what the blocks before it have handed on, with all arguments that the network passes.

    It starts a forward of the whole network in which the block before is replaced by a function that returns the given
    output, and those before it by functions that return their input, and ends it after the block. Positions, masks and
    per-layer inputs come from the network, so they are right for any architecture, as is what it does between blocks.
    The cost beyond the block itself is an embedding look-up.
    """

    def __init__(self, network: nn.Module, blocks: list[Block]) -> None:
        self._network = network
        self._blocks = blocks
        self._path = text_forward(network, [block.module for block in blocks])
        self._thread = threading.local()

    @contextlib.contextmanager
    def only(self, index: int) -> Iterator[Callable[[Tensor, BlockOutput | None], BlockOutput | None]]:
        """A function that runs block `index`, in any thread: (ids, output of the block before) → its output.

        ids: (sequences, tokens). The output of the block before is None for the first block. The function returns None
        when the forward ended inside the block, and raises ModelError when the network does not run the block.
        """
        run_block = self._blocks[index].module.forward

        def pass_on(number: int) -> Callable[..., Any]:
            def forward(*arguments: Any, **keywords: Any) -> Any:
                given: BlockOutput = self._thread.given
                if number == index - 1:
                    return self._as_output(given.states, given.extras)
                return given.kept[number] if number in given.kept else self._as_output(_states(arguments, keywords))

            return forward

        def run_and_end(*arguments: Any, **keywords: Any) -> Any:
            given: BlockOutput | None = self._thread.given
            shared = {} if given is None else given.shared
            mappings = dict(_mappings(arguments, keywords))
            for place, entries in shared.items():
                mappings[place].update(entries)
            before = {place: dict(mapping) for place, mapping in mappings.items()}
            output = run_block(*arguments, **keywords)
            written = {place: _changes(before[place], mapping) for place, mapping in mappings.items()}
            shared = {place: {**shared.get(place, {}), **entries} for place, entries in written.items()}
            kept = {} if given is None else given.kept
            raise ForwardEnded(self._handed_on(index, output, kept, shared))

        def run(ids: Tensor, given: BlockOutput | None) -> BlockOutput | None:
            self._thread.given = given
            try:
                with CausalByPieces() if ids.device.type == "cpu" else contextlib.nullcontext():
                    self._network(input_ids=ids, use_cache=False)
            except ForwardEnded as ended:
                output: BlockOutput | None = ended.output
                return output
            finally:
                del self._thread.given
            raise ModelError(f"the network never ran its block {self._blocks[index].name}")

        with _replaced_forwards(self._blocks[: index + 1], [*map(pass_on, range(index)), run_and_end]):
            yield run

    def _as_output(self, states: Tensor, extras: Sequence[Any] = ()) -> Any:
        """What a block returns: hidden states alone, or a tuple."""
        if not self._path.outputs:
            return states
        return (states, *extras, *[None] * (self._path.outputs - len(extras)))

    def _handed_on(
        self, index: int, output: Any, kept: Mapping[int, Any], shared: Mapping[Hashable, Mapping[Any, Any]]
    ) -> BlockOutput:
        states, *extras = output if isinstance(output, tuple | list) else (output,)
        assert isinstance(states, Tensor), type(states)
        return BlockOutput(
            states=states,
            extras=tuple(extras) if self._path.uses_extras else (),
            kept={**kept, index: output} if index in self._path.kept else kept,
            shared={place: entries for place, entries in shared.items() if entries},
        )


def _states(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Tensor:
    """The hidden states among the arguments of a block."""
    states: Tensor = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
    return states


def _mappings(
    arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Iterator[tuple[Hashable, MutableMapping[Any, Any]]]:
    """Arguments into which a block can write for later blocks, by position or name."""
    for place, value in (*enumerate(arguments), *keywords.items()):
        if isinstance(value, MutableMapping):
            yield place, value


def _changes(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries that a block has written."""
    return {key: value for key, value in after.items() if key not in before or before[key] is not value}


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
