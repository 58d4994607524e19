"""Export of rounded models in the `compressed-tensors` format, which transformers and vLLM can load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmkick.compression.recipe import Grid, Recipe, Recovered
from llmkick.compression.recoveries import LowRank
from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.folder import UnchangedWeights, report_of, write_model
from llmkick.compression.storage.shards import bundles, write_shards
from llmkick.compression.storage.source_files import CONFIG
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import on_the_meta_device
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import Codes, Packed, codes_of, read_parts, unpack
from llmkick.models.checkpoints.stored_groups import NameReader
from llmkick.models.transformers_model import TransformersModel

FORMAT = "pack-quantized"


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


def check_storable(model: TransformersModel, blocks: list[Block]) -> None:
    """Raise ConfigError when transformers would not read a layer of the model, or another part, from this format."""
    from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

    stored = StoredModel(model)
    stored.form.refuse_unreadable()
    merged = (layer.name for block in blocks for layer in block.layers if stem_of(stored, layer.name) is None)
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


def stem_of(stored: StoredModel, layer: str) -> str | None:
    """What stands before `weight` in the name of a layer's weight in the checkpoint; None where it is merged."""
    name = stored.form.name_of(f"{layer}.weight")
    return None if name is None else name.removesuffix("weight")


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
    check_storable(unchanged.model, blocks)
    export = _Export(stored=stored, scheme=_scheme(recipe), dtype=unchanged.model.info.dtype)

    def write(temporary: Path) -> list[str]:
        write_shards(temporary, export.shards(unchanged, finished))
        ignored = _ignored(unchanged.model, stored, export.packed)
        settings = _quantization_config(recipe, ignored)
        notes = [f"stored as plain weights: {name}" for name in export.plain]
        return notes + write_config(unchanged.model, temporary, quantization=settings)

    size, form = unchanged.bytes + report.stored_bytes + stored.other_bytes, "compressed-tensors, packed integers"
    return write_model(unchanged.model, report, folder, size, write, form=form)


class _Export:
    """Writes layers in the format; `packed` and `plain` are the layers written as integers and as plain weights."""

    def __init__(self, *, stored: StoredModel, scheme: Any, dtype: str) -> None:
        self._stored, self._scheme, self._dtype = stored, scheme, dtype
        self.packed: list[str] = []
        self.plain: list[str] = []

    def shards(self, unchanged: UnchangedWeights, finished: FinishedBlocks) -> Iterator[dict[str, Tensor]]:
        """All tensors of the checkpoint: those outside the layers, other parts, then the layers of each block."""
        yield from bundles(self._stored.tensors(unchanged))
        yield from bundles(self._stored.other_tensors())
        for file in finished.files():
            shard: dict[str, Tensor] = {}
            with finished.reading(file):
                for name, packed in read_parts(file):
                    stem = stem_of(self._stored, name)
                    shard |= {f"{stem}{part}": tensor for part, tensor in self._layer(name, packed).items()}
            yield shard

    def _layer(self, name: str, packed: Packed) -> dict[str, Tensor]:
        """The tensors of one layer: its codes if the format gives back the weight exactly, else the weight itself."""
        weight, codes = unpack(packed), codes_of(packed)
        if codes is not None:
            tensors = _tensors(codes)
            read = self._decompressed(tensors)
            if read is not None and torch.equal(read.to(weight.dtype), weight):
                self.packed.append(name)
                return tensors
        self.plain.append(name)
        return {"weight": weight}

    def _decompressed(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The weight that the package reads; None where it fails, as for few rows with zero points (0.20)."""
        from compressed_tensors.compressors import BaseCompressor

        try:
            read = BaseCompressor.get_value_from_registry(FORMAT).decompress(dict(tensors), self._scheme)
            weight: Tensor = read["weight"]
        except Exception:  # noqa: BLE001 - it says nothing of how it fails
            return None
        return weight


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


def _scheme(recipe: Recipe) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    grid = next(part for part in recipe.parts if isinstance(part, Grid))
    arguments = QuantizationArgs(
        num_bits=grid.bits,
        type="int",
        symmetric=grid.symmetric,
        strategy="channel" if grid.group_size is None else "group",
        group_size=grid.group_size,
    )
    return QuantizationScheme(targets=["Linear"], weights=arguments)


def _quantization_config(recipe: Recipe, ignored: list[str]) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={"group_0": _scheme(recipe)},
        format=FORMAT,
        quantization_status="compressed",
        ignore=ignored,
    )
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    grid = next(part for part in recipe.parts if isinstance(part, Grid))
    if not grid.symmetric:
        # transformers cannot load packed weights with zero points (compressed-tensors 0.20), so that it unpacks them.
        values["dequantize"] = True
    return values


def _ignored(model: TransformersModel, stored: StoredModel, packed: list[str]) -> list[str]:
    """The modules that hold a matrix as it is, under the names of every class that transformers opens the folder as."""
    names = {stored.form.name_of(f"{name}.weight") for name in packed}
    ignored: set[str] = set()
    for network in (model.network, _whole_network(model)):
        if network is not None:
            targets = NameReader(network).targets(name for name in names if name is not None)
            as_integers = {target.removesuffix(".weight") for target in targets.values()}
            ignored |= {name for name in _matrices(network) if name not in as_integers}
    return sorted(ignored)


def _matrices(network: nn.Module) -> list[str]:
    """The modules of a network that multiply by a matrix of their own: linear layers, routers, output head."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        or (
            (isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() == 2)
            and not isinstance(module, nn.Embedding)
        )
    ]


def _whole_network(model: TransformersModel) -> Any:
    """The network of the class that config.json names, on the meta device; None where the model is of that class.

    A model of text and images may be loaded for its language model alone.
    """
    import transformers

    if model.checkpoint is None:
        return None
    stated = json.loads((model.checkpoint.folder / CONFIG).read_text(encoding="utf-8")).get("architectures") or [""]
    whole = getattr(transformers, str(stated[0]), None)
    if whole is None or isinstance(model.network, whole):
        return None
    config = transformers.AutoConfig.from_pretrained(
        model.checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    with on_the_meta_device():
        return whole(config)
