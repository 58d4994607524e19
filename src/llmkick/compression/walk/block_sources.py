"""Where a walk gets its blocks from: a network in memory, or in `streamed_blocks` the files of a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.linear_layer import replace_weights
from llmkick.compression.walk.network_parts import BlockFinish
from llmkick.compression.walk.processes import Processes
from llmkick.models.allocator import KEPT, give_back_freed_memory


class BlockSource(Protocol):
    """The blocks of the network at work, which have their weights in memory while they are open.

    drops_blocks: a block that was closed is read again when it is opened, so its layers may be replaced in any case.
    """

    blocks: list[Block]
    drops_blocks: bool

    def open(self, index: int) -> contextlib.AbstractContextManager[Block]:
        """Block `index` with its weights in memory, as long as the context lasts."""
        ...

    def finish(self, block: Block) -> BlockFinish | None:
        """What is to be done with a block, open and compressed, beside keeping its layers; see `FinishedBlocks.add`."""
        ...

    def release_memory(self) -> None:
        """Called when the walk has dropped something large."""
        ...

    def show_finished(self) -> None:
        """From now on a weight that an earlier block shares is its compressed one, where that block is finished."""
        ...


@dataclass(kw_only=True)
class BlocksInMemory:
    """The blocks of a network that is loaded."""

    blocks: list[Block]
    drops_blocks: bool = False

    def open(self, index: int) -> contextlib.AbstractContextManager[Block]:
        """The block itself."""
        return contextlib.nullcontext(self.blocks[index])

    def finish(self, block: Block) -> BlockFinish | None:
        """Nothing: the network keeps the block."""

    def release_memory(self) -> None:
        """Give freed memory back to the system where it adds up: between kept weights it is in pieces."""
        give_back_freed_memory(above=KEPT)

    def show_finished(self) -> None:
        """Do nothing: layers that share a weight share one parameter."""


def put_layers(block: Block, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Replace the layers of a block by (name, weight (out, in)) pairs; the other layers stay."""
    by_name = {layer.name: layer for layer in block.layers}
    replace_weights((by_name[name], weight) for name, weight in weights)


def kept_weights(
    processes: Processes, finished: FinishedBlocks | None, index: int, block: Block
) -> Iterator[tuple[str, Tensor]]:
    """Layer names and weights of a finished block in every process, from the folder of the first."""
    if processes.count == 1:
        assert finished is not None
        yield from finished.weights(index)
        return
    weights = {} if finished is None else {name: weight.contiguous() for name, weight in finished.weights(index)}
    layers = {layer.name: layer for layer in block.layers}
    for name in processes.from_first(list(weights)):
        dense = layers[name].weight
        weight = weights[name] if name in weights else torch.empty(dense.shape, dtype=dense.dtype, device="cpu")
        processes.hand_out(weight, 0)
        yield name, weight
