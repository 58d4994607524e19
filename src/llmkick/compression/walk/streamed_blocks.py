"""The blocks of a checkpoint that is never in memory as a whole: each is read from its files while it is open."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor, nn

from llmkick.compression.walk.background import BackgroundWorker
from llmkick.compression.walk.block_sources import put_layers
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.linear_layer import LinearLayer, put_parameter, replace_weights
from llmkick.compression.walk.network_parts import BlockFinish, KeptBlock, NetworkPart, PartSink
from llmkick.compression.walk.unchanged import names_outside_blocks, output_heads
from llmkick.errors import NumericalError
from llmkick.models.allocator import give_back_freed_memory
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.finite import all_finite
from llmkick.models.weights import digest_of

# At multiples of so many bytes torch begins its tensors; those mapped from a file begin anywhere.
ALIGNMENT = 64


class StreamedBlocks:
    """The blocks of a network on the meta device, which are read from their files while they are open.

    While one is open, a thread reads the next. sink: see `compress_streamed`.
    """

    drops_blocks = True

    def __init__(self, meta_model: MetaModel) -> None:
        self.meta_model = meta_model
        self.network: Any = meta_model.model.network
        self.blocks = decoder_blocks(self.network)
        self.finished: FinishedBlocks | None = None
        self.sink: PartSink | None = None
        self._outside: dict[str, Tensor] = {}  # what the network holds outside its blocks, until it is handed on
        self._reader = BackgroundWorker("reading ahead")
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._reads_ahead = False
        self._shows_finished = False
        shared = [(index, layer) for index, block in enumerate(self.blocks) for layer in block.layers if layer.twins]
        # Block → the layers in it whose weight belongs to an earlier block, the number of that block, its layer's name.
        self._borrowed: dict[str, list[tuple[LinearLayer, int, str]]] = {
            block.name: [
                (twin, index, layer.name)
                for index, layer in shared
                for twin in layer.twins
                if twin.name.startswith(f"{block.name}.")
            ]
            for block in self.blocks
        }

    def show_finished(self) -> None:
        """From now on a weight that an earlier block shares is its compressed one, where that block is finished."""
        self._shows_finished = True

    @contextlib.contextmanager
    def open(self, index: int) -> Iterator[Block]:
        """Block `index` with its weights on the device. Raises NumericalError when they are not finite."""
        block = self.blocks[index]
        if self._ahead is None or self._ahead[0] != index:
            self._read_ahead(index)
        assert self._ahead is not None
        tensors, self._ahead = self._ahead[1].result(), None
        if self._reads_ahead and index + 1 < len(self.blocks):
            self._read_ahead(index + 1)
        with self._filled(tensors):
            del tensors
            self._put_borrowed(block)
            yield block

    def _read_ahead(self, index: int) -> None:
        block = self.blocks[index]
        names = [f"{block.name}.{name}" for name in block.module.state_dict()]
        self._ahead = index, self._reader.submit(self._read_all, names)

    def finish(self, block: Block) -> BlockFinish | None:
        """Digests of all tensors of an open block, which go to the sink."""
        tensors = self._tensors_of(block)

        def finish(kept: KeptBlock) -> dict[str, str]:
            digests = {name: kept.digests.get(name) or digest_of(tensor) for name, tensor in tensors.items()}
            if self.sink is not None:
                self.sink(NetworkPart(tensors=tensors, digests=digests, kept=kept))
            return digests

        return finish

    def take_up(self, finished: FinishedBlocks) -> None:
        """The blocks that are finished already: they go to the sink, and have digests afterwards."""
        for index in range(finished.count):
            names = self._names_of(self.blocks[index])
            if self.sink is None and all(name in finished.digests for name in names):
                continue
            part = self._compressed_block(finished, index)
            finished.digests |= part.digests
            if self.sink is not None:
                self.sink(part)

    def take_outside(self) -> dict[str, str]:
        """Digests of the tensors outside the blocks, which go to the sink; each is read from its file once."""
        digests, held = {}, self._outside  # of this walk, even if it ends with an error meanwhile
        for name in self.names_outside():
            tensor = held.pop(name, None)
            if tensor is None:
                tensor = self._read_checked(name)
            digests[name] = digest_of(tensor)
            if self.sink is not None:
                self.sink(NetworkPart(tensors={name: tensor}, digests={name: digests[name]}))
        return digests

    def _put_borrowed(self, block: Block) -> None:
        """Put the compressed weights of finished blocks into the layers that share them."""
        for number in {number for _, number, _ in self._borrowed[block.name]}:
            if self.finished is None or not self._shows_finished or number >= self.finished.count:
                continue
            layers = {name: twin for twin, owner, name in self._borrowed[block.name] if owner == number}
            replace_weights((layers[name], w) for name, w in self.finished.weights(number) if name in layers)

    @contextlib.contextmanager
    def surroundings(self, *, hands_on: bool) -> Iterator[None]:
        """Hold the weights outside the blocks in memory, without those of the output head, which never runs.

        hands_on: `take_outside` will be called.
        """
        unused = output_heads(self.network)
        names = [name for name in self.names_outside() if name.rpartition(".")[0] not in unused]
        tensors = self._read_all(names, as_placed=True)
        self._outside = dict(tensors) if hands_on else {}
        self._reads_ahead = True
        try:
            with self._filled(tensors):
                yield
        finally:
            self._reads_ahead, self._ahead, self._outside = False, None, {}
            self._reader.close()

    def release_memory(self) -> None:
        """Give freed memory back to the system."""
        give_back_freed_memory()

    def names_outside(self) -> list[str]:
        """Names in the state dict of all tensors that are in no block, without twins of tied weights."""
        return names_outside_blocks(self.network, self.blocks)

    def read(self, name: str) -> Tensor:
        """A tensor of the state dict in the model's precision, on the CPU."""
        return dict(self.meta_model.read([name]))[name]

    def compressed_parts(self, finished: FinishedBlocks) -> Iterator[NetworkPart]:
        """All tensors of the compressed network by name, a block at a time, without tied weights."""
        for name in self.names_outside():
            yield NetworkPart(tensors={name: self.read(name)}, digests={})
        for index in range(finished.count):
            yield self._compressed_block(finished, index)

    def _compressed_block(self, finished: FinishedBlocks, index: int) -> NetworkPart:
        """The tensors of a block after compression, on the device."""
        kept = list(finished.packed(index))
        with self.open(index) as block:
            put_layers(block, ((name, weight) for name, _, weight in kept))
            tensors = self._tensors_of(block)
        digests = {name: finished.digests.get(name) or digest_of(tensor) for name, tensor in tensors.items()}
        layers = {name: packed for name, packed, _ in kept}
        block_kept = KeptBlock(file=finished.file_of(index), layers=layers, digests=digests)
        return NetworkPart(tensors=tensors, digests=digests, kept=block_kept)

    def _tensors_of(self, block: Block) -> dict[str, Tensor]:
        """The tensors of an open block by their names in the network, without tied weights."""
        state = block.module.state_dict()
        return {name: state[name.removeprefix(f"{block.name}.")] for name in self._names_of(block)}

    def _names_of(self, block: Block) -> list[str]:
        names = [f"{block.name}.{name}" for name in block.module.state_dict()]
        return [name for name in names if name not in self.meta_model.tied]

    @contextlib.contextmanager
    def _filled(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Put these tensors into the network; afterwards they are on the meta device again. The dictionary is emptied.

        Nothing else holds them then, so that the memory of a layer is free as soon as the layer is replaced.
        """
        meta_tensors = {name: _get(self.network, name) for name in tensors}
        try:
            for name, meta_tensor in meta_tensors.items():
                tensor = tensors.pop(name).to(self.meta_model.device)
                _put(
                    self.network, name, nn.Parameter(tensor, False) if isinstance(meta_tensor, nn.Parameter) else tensor
                )
            yield
        finally:
            for name, meta_tensor in meta_tensors.items():
                _put(self.network, name, meta_tensor)
            self.release_memory()

    def _read_all(self, names: Collection[str], *, as_placed: bool = False) -> dict[str, Tensor]:
        """Copies of tensors: pages mapped from a file would count as memory of this process until it is closed.

        as_placed: see `_copy_as_placed`.
        """
        tensors = {}
        for name, tensor in self.meta_model.read(names):
            # Where the model could also be loaded whole, results must not depend on which was done.
            copy = _copy_as_placed(tensor) if as_placed or self.meta_model.groups else tensor.clone()
            _check_finite(name, copy)
            tensors[name] = copy
        return tensors

    def _read_checked(self, name: str) -> Tensor:
        tensor = self.read(name)
        _check_finite(name, tensor)
        return tensor


def _copy_as_placed(tensor: Tensor) -> Tensor:
    """A copy that begins as far after a multiple of 64 bytes: matrix products round by where their operands begin."""
    flat = tensor.contiguous().view(-1)
    start = flat.data_ptr() % ALIGNMENT // flat.element_size()
    memory = torch.empty(start + len(flat), dtype=flat.dtype)  # begins at a multiple
    return memory[start:].copy_(flat).view(tensor.shape)


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all_finite(tensor):
        raise NumericalError(f"the weights of {name} hold NaN or Inf values: the checkpoint is damaged")


def _get(network: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(owner), key)
    return tensor


def _put(network: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    if isinstance(tensor, nn.Parameter):
        put_parameter(network.get_submodule(owner), key, tensor)
    else:
        setattr(network.get_submodule(owner), key, tensor)
