"""Export of rounded models in the `compressed-tensors` format, which transformers and vLLM can load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkick.compression.recipe import Grid, Recipe, Recovered
from llmkick.compression.recoveries import LowRank
from llmkick.compression.storage.folder import UnchangedWeights, report_of
from llmkick.compression.storage.integer_layers import IntegerLayers
from llmkick.compression.storage.shards import ShardWriter
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.storage.target import StreamedShards, write_model
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.network_parts import NetworkPart
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import unpack
from llmkick.models.checkpoints.packed_file import read_parts
from llmkick.models.transformers_model import TransformersModel

_FORM = "compressed-tensors, packed integers"  # for the model card


def check_exportable(recipe: Recipe, blocks: list[Block]) -> None:
    """Raise ConfigError for a recipe or a model that the format cannot hold, or a missing package."""
    grid = next((part for part in recipe.parts if isinstance(part, Grid)), None)
    if recipe.bits is None or grid is None:
        raise ConfigError(f"{recipe} rounds nothing, and compressed-tensors stores integers; use --packed")
    if isinstance(recipe, Recovered) and isinstance(recipe.recovery, LowRank):
        raise ConfigError(
            f"{recipe} keeps matrices beside the integers, and compressed-tensors has no place for them; use --packed"
        )
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise ConfigError("this export needs a package: pip install 'llmkick[compressed-tensors]'") from error
    if not 1 <= grid.bits <= 8:
        raise ConfigError(f"{recipe} has {grid.bits} bits, and compressed-tensors stores 1 to 8; use --packed")
    group = recipe.group_size
    for block in blocks:
        for layer in block.layers:
            if layer.form != "linear":
                raise ConfigError(f"{layer.name} is no plain linear layer; compressed-tensors cannot hold it here")
            if layer.twins:
                raise ConfigError(
                    f"{layer.name} shares its weight with {layer.twins[0].name}, which compressed-tensors cannot "
                    "state; use --packed"
                )
            width = layer.weight.shape[1]
            if group is not None and width % group:
                raise ConfigError(
                    f"{recipe}: {layer.name} has {width} inputs, which is not a multiple of {group}, as "
                    "compressed-tensors needs; choose a group size that divides every layer's width, or none"
                )


def check_storable(model: TransformersModel, blocks: list[Block], stored: StoredModel | None = None) -> None:
    """Raise ConfigError when transformers would not read a layer of the model, or another part, from this format.

    stored: how the model is written, if that is known.
    """
    from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

    stored = stored or StoredModel(model)
    stored.form.refuse_unreadable()
    merged = (layer.name for block in blocks for layer in block.layers if stored.stem_of(layer.name) is None)
    if (name := next(merged, None)) is not None:
        raise ConfigError(
            f"{name} is stored merged with other layers, or split, in checkpoints of this architecture; "
            "compressed-tensors cannot hold it here; use --packed"
        )
    made = (group.targets[0] for group in stored.form.groups if group.converter is not None)
    if (name := next(made, None)) is not None:
        raise ConfigError(
            f"{name} is stored merged with other tensors, or split, in checkpoints of this architecture, which "
            "transformers does not read beside compressed-tensors; use --packed"
        )
    patches: Mapping[str, Any] = MODULES_TO_PATCH_FOR_QUANTIZATION
    replaced = {
        name
        for name, patch in patches.items()
        if "compressed-tensors" in {str(getattr(method, "value", method)) for method in patch["quantization_methods"]}
    }
    for name, module in model.network.named_modules():
        if type(module).__name__ in replaced:
            raise ConfigError(
                f"{name}: transformers puts other layers in the place of a {type(module).__name__} when it reads "
                "compressed-tensors; use --packed"
            )


def save_compressed_tensors(
    model: TransformersModel | MetaModel, recipe: Recipe, finished: FinishedBlocks, folder: Path
) -> CompressionReport:
    """Write a rounded model from its finished blocks: packed codes with their scales and zero points.

    Scales are float32, in which the codes were computed. Zeros of a pruned model become codes like other values. A
    layer that the format does not give back exactly is stored as plain weights, and ignored by the format like every
    layer that was not compressed. Result and errors as in `check_exportable` and `save_folder`.
    """
    unchanged, report = UnchangedWeights(model), report_of(finished)
    stored, blocks = StoredModel(unchanged.model), decoder_blocks(unchanged.model.network)
    check_exportable(recipe, blocks)
    check_storable(unchanged.model, blocks, stored)
    layers = IntegerLayers(stored, recipe, blocks)

    def write(temporary: Path) -> list[str]:
        while not _is_written(layers, unchanged, finished, temporary):
            for file in temporary.glob("model*.safetensors*"):
                file.unlink()
        return layers.configure(unchanged.model, temporary)

    size = unchanged.bytes + report.stored_bytes + stored.other_bytes
    return write_model(unchanged.model, report, folder, size, write, form=_FORM)


def _is_written(layers: IntegerLayers, unchanged: UnchangedWeights, finished: FinishedBlocks, folder: Path) -> bool:
    """Write all tensors; False where layers have others than was known. They are known afterwards."""
    with ShardWriter(folder, layers.planned()) as shards:
        fits = True
        for file in finished.files():
            with finished.reading(file):
                for name, packed in read_parts(file):
                    tensors = layers.tensors_of(name, packed, unpack(packed))
                    fits = fits and layers.fits
                    if fits:
                        shards.put(tensors.items())
        if fits:
            shards.put(layers.stored.tensors(unchanged))
            shards.put(layers.stored.other_tensors())
            shards.close()
    return fits


class StreamedIntegers(StreamedShards):
    """A folder in the format that is written while a meta model is compressed; otherwise as above."""

    def __init__(
        self,
        meta_model: MetaModel,
        folder: Path,
        *,
        recipe: Recipe,
        besides: int = 0,
        stored: StoredModel | None = None,
    ) -> None:
        super().__init__(meta_model, folder, besides=besides, stored=stored)
        blocks = decoder_blocks(self._model.network)
        check_exportable(recipe, blocks)
        check_storable(self._model, blocks, self._stored)
        self._layers = IntegerLayers(self._stored, recipe, blocks)

    @property
    def _form(self) -> str:
        return _FORM

    @cached_property
    def _planned(self) -> dict[str, Tensor]:
        return self._layers.planned()

    def put(self, part: NetworkPart) -> None:
        """Write the codes of the layers, and all other tensors."""
        packed = {} if part.kept is None else part.kept.layers
        made = [self._layers.tensors_of(name, layer, part.tensors[f"{name}.weight"]) for name, layer in packed.items()]
        self.fits = self._layers.fits
        if self.fits:
            for tensors in made:
                self._shards.put(tensors.items())
            self._put_network(part.unchanged)

    def _configure(self, temporary: Path) -> list[str]:
        return self._layers.configure(self._model, temporary)
