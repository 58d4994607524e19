"""Export of rounded models in the `compressed-tensors` format, which transformers and vLLM can load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.recipe import Grid, Recipe
from llmkick.compression.storage.folder import (
    UnchangedWeights,
    bundles,
    report_of,
    write_config,
    write_model,
    write_shards,
)
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.unchanged import output_heads
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import Codes, codes_of, read_parts
from llmkick.models.transformers_model import TransformersModel


def check_exportable(recipe: Recipe, blocks: list[Block]) -> None:
    """Raise ConfigError for a recipe or a model that the format cannot hold, or a missing package."""
    if recipe.bits is None:
        raise ConfigError(f"{recipe} rounds nothing, and compressed-tensors stores integers; use --packed")
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise ConfigError("this export needs a package: pip install 'llmkick[compressed-tensors]'") from error
    group = recipe.group_size
    for block in blocks:
        for layer in block.layers:
            if layer.form != "linear":
                raise ConfigError(f"{layer.name} is no plain linear layer; compressed-tensors cannot hold it here")
            width = layer.weight.shape[1]
            if group is not None and width % group:
                raise ConfigError(
                    f"{recipe}: {layer.name} has {width} inputs, which is not a multiple of {group}, as "
                    "compressed-tensors needs; choose a group size that divides every layer's width, or none"
                )


def save_compressed_tensors(
    model: TransformersModel | MetaModel, recipe: Recipe, finished: FinishedBlocks, folder: Path
) -> None:
    """Write a rounded model from its finished blocks: packed codes with their scales and zero points.

    Scales are float32, in which the codes were computed. Zeros of a pruned model become codes like other values. Errors
    as in `check_exportable` and `save_folder`.
    """
    unchanged, report = UnchangedWeights(model), report_of(finished)
    blocks = decoder_blocks(unchanged.model.network)
    check_exportable(recipe, blocks)

    def write(temporary: Path) -> None:
        write_shards(temporary, _shards(unchanged, finished))
        config = unchanged.model.network.config
        config.quantization_config = _quantization_config(recipe, unchanged.model)
        try:
            write_config(unchanged.model, temporary)
        finally:
            del config.quantization_config

    write_model(unchanged.model, report, folder, unchanged.bytes + report.stored_bytes, write)


def _shards(unchanged: UnchangedWeights, finished: FinishedBlocks) -> Iterator[dict[str, Tensor]]:
    yield from bundles(unchanged.tensors())
    for file in finished.files():
        shard: dict[str, Tensor] = {}
        for name, packed in read_parts(file):
            codes = codes_of(packed)
            if codes is None:  # a layer that no calibration token reached
                raise ConfigError(f"{name} was left dense; compressed-tensors has no place for it here; use --packed")
            shard |= {f"{name}.{part}": tensor for part, tensor in _tensors(codes).items()}
        yield shard


def _tensors(codes: Codes) -> dict[str, Tensor]:
    """The tensors of one weight in this format: integers centred on 0, packed into 32-bit words row by row."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    middle = 1 << (codes.bits - 1)
    tensors = {
        "weight_packed": pack_to_int32((codes.codes.int() - middle).to(torch.int8), codes.bits),
        "weight_scale": codes.scale.float(),
        "weight_shape": torch.tensor(codes.codes.shape),
    }
    if not codes.symmetric:
        zero = (codes.zero.int() - middle).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero, codes.bits, packed_dim=0)
    return tensors


def _quantization_config(recipe: Recipe, model: TransformersModel) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    grid = next(part for part in recipe.parts if isinstance(part, Grid))
    arguments = QuantizationArgs(
        num_bits=grid.bits,
        type="int",
        symmetric=grid.symmetric,
        strategy="channel" if grid.group_size is None else "group",
        group_size=grid.group_size,
    )
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=arguments)},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=output_heads(model.network),
    )
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return values
