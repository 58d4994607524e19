"""Compressing a checkpoint that is never in memory as a whole: read, compress and keep one block at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.block_sources import put_layers
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import (
    check_calibration_fits,
    check_compressible,
    check_recipe_fits,
    count_weights,
)
from llmkick.compression.walk.compress import kept_blocks, make_report
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.linear_layer import LinearLayer, put_parameter, replace_weights
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.unchanged import names_outside_blocks, output_heads
from llmkick.compression.walk.walk import Progress, Walk
from llmkick.errors import ModelError, NumericalError
from llmkick.models.allocator import give_back_freed_memory
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.finite import all_finite
from llmkick.models.weights import combined_digest, digest_of


def compress_streamed(
    meta_model: MetaModel,
    recipe: Recipe,
    folder: Path,
    *,
    calibration: Calibration | None,
    seed: int = 0,
    propagate: bool = True,
    allow_partial: bool = False,
    progress: Progress | None = None,
) -> FinishedBlocks:
    """Compress a model that is on the meta device, block by block, into a folder of finished blocks.

    The weights equal those of `compress` bit for bit. Memory holds one block, the hidden states of the calibration, the
    second moments of one block's inputs and the network's parts before its blocks. Called again after it was stopped,
    it continues at the first block that is not finished.
    Raises ModelError when its blocks cannot be read one by one; other errors as in `compress`.
    """
    if meta_model.obstacle is not None:
        raise ModelError(f"{meta_model.info.name} cannot be read block by block: {meta_model.obstacle}; load it whole")
    source = StreamedBlocks(meta_model)
    check_compressible(source.network, source.blocks, allow_partial=allow_partial)
    check_recipe_fits(recipe, source.blocks, calibration)
    if calibration is not None:
        check_calibration_fits(calibration, meta_model.model)
    finished = kept_blocks(meta_model.info, meta_model.device, recipe, calibration, folder, propagate=propagate)
    if finished.report is not None:
        return finished
    source.finished = finished
    output = RecipeOutput(recipe=recipe, finished=finished)
    with source.surroundings():
        Walk(
            network=meta_model.model.network,
            source=source,
            outputs=[output],
            device=meta_model.device,
            propagate=propagate,
            allow_partial=allow_partial,
            progress=progress,
        ).run(calibration)
    digests = {name: digest_of(source.read(name)) for name in source.names_outside()}
    for tensors in source.compressed_blocks(finished):
        digests |= {name: digest_of(tensor) for name, tensor in tensors.items()}
    for name, twin in meta_model.tied.items():
        digests[name] = digests[twin]
    digest = combined_digest(digests)
    weights = count_weights(source.network, source.blocks)
    arguments = output, meta_model.info, calibration, weights
    finished.complete(make_report(*arguments, seed=seed, propagate=propagate, digest=digest))
    return finished


class StreamedBlocks:
    """The blocks of a network on the meta device, which are read from their files while they are open."""

    def __init__(self, meta_model: MetaModel) -> None:
        self.meta_model = meta_model
        self.network: Any = meta_model.model.network
        self.blocks = decoder_blocks(self.network)
        self.finished: FinishedBlocks | None = None
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
        names = [f"{block.name}.{name}" for name in block.module.state_dict()]
        with self._filled(names, self._read):
            self._put_borrowed(block)
            yield block

    def _put_borrowed(self, block: Block) -> None:
        """Put the compressed weights of finished blocks into the layers that share them."""
        for number in {number for _, number, _ in self._borrowed[block.name]}:
            if self.finished is None or not self._shows_finished or number >= self.finished.count:
                continue
            layers = {name: twin for twin, owner, name in self._borrowed[block.name] if owner == number}
            replace_weights((layers[name], w) for name, w in self.finished.weights(number) if name in layers)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Hold the weights outside the blocks in memory, without those of the output head, which never runs."""
        unused = output_heads(self.network)
        with self._filled([n for n in self.names_outside() if n.rpartition(".")[0] not in unused], self._map):
            yield

    def release_memory(self) -> None:
        """Give freed memory back to the system."""
        give_back_freed_memory()

    def names_outside(self) -> list[str]:
        """Names in the state dict of all tensors that are in no block, without twins of tied weights."""
        return names_outside_blocks(self.network, self.blocks)

    def read(self, name: str) -> Tensor:
        """A tensor of the state dict in the model's precision, on the CPU."""
        dtype = self.network.state_dict()[name].dtype
        return self.meta_model.files.read(self.meta_model.tied.get(name, name)).to(dtype)

    def compressed_blocks(self, finished: FinishedBlocks) -> Iterator[dict[str, Tensor]]:
        """The state dict of each block after compression, on the device, one block at a time, without tied weights."""
        for index in range(finished.count):
            with self.open(index) as block:
                put_layers(block, finished.weights(index))
                named = ((f"{block.name}.{name}", tensor) for name, tensor in block.module.state_dict().items())
                yield {name: tensor for name, tensor in named if name not in self.meta_model.tied}

    @contextlib.contextmanager
    def _filled(self, names: list[str], read: Callable[[str], Tensor]) -> Iterator[None]:
        """Read these tensors into the network; afterwards they are on the meta device again."""
        meta_tensors = {name: _get(self.network, name) for name in names}
        try:
            for name, meta_tensor in meta_tensors.items():
                tensor = read(name).to(self.meta_model.device)
                _put(
                    self.network, name, nn.Parameter(tensor, False) if isinstance(meta_tensor, nn.Parameter) else tensor
                )
            yield
        finally:
            for name, meta_tensor in meta_tensors.items():
                _put(self.network, name, meta_tensor)
            self.release_memory()

    def _read(self, name: str) -> Tensor:
        """A copy of a tensor: pages mapped from the file would count as memory of this process until it is closed."""
        tensor = self.read(name).clone()
        if tensor.is_floating_point() and not all_finite(tensor):
            raise NumericalError(f"the weights of {name} hold NaN or Inf values: the checkpoint is damaged")
        return tensor

    def _map(self, name: str) -> Tensor:
        """A tensor mapped from its file: only the used rows of a large embedding take memory."""
        self._read(name)  # checks that it is finite; the copy is freed at once
        return self.read(name)


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
