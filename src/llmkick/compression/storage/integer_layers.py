"""The layers of a rounded model in the format `compressed-tensors`: their tensors, and the description of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmkick.compression.recipe import Grid, Recipe
from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.source_files import CONFIG
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.walk.blocks import Block
from llmkick.models.checkpoints.loading import on_the_meta_device
from llmkick.models.checkpoints.packed import Codes, Packed, codes_of
from llmkick.models.checkpoints.stored_groups import NameReader
from llmkick.models.transformers_model import TransformersModel

FORMAT = "pack-quantized"


class IntegerLayers:
    """The layers of a model in the format, and what each is stored as: codes, or plain weights.

    At first all seem to be stored as codes. `fits` is False when one turned out to have other tensors.
    """

    def __init__(self, stored: StoredModel, recipe: Recipe, blocks: list[Block]) -> None:
        self.stored, self._recipe, self._scheme = stored, recipe, _scheme(recipe)
        self.fits = True
        grid = self._scheme.weights
        self._tensors: dict[str, dict[str, Tensor]] = {}  # by name in the checkpoint, on the meta device
        for block in blocks:
            for layer in block.layers:
                rows, columns = layer.weight.shape
                parts = _planned(rows, columns, grid.num_bits, grid.group_size, symmetric=grid.symmetric)
                stem = stored.stem_of(layer.name)
                self._tensors[layer.name] = {f"{stem}{part}": tensor for part, tensor in parts.items()}

    def planned(self) -> dict[str, Tensor]:
        """All tensors of the checkpoint, on the meta device, as far as is known. From now on it fits again."""
        self.fits = True
        planned = self.stored.planned()
        for layer, tensors in self._tensors.items():
            del planned[f"{self.stored.stem_of(layer)}weight"]
            planned |= tensors
        return planned

    def tensors_of(self, name: str, packed: Packed, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of a layer by name in the checkpoint: codes if the format gives the weight exactly, else that."""
        weight, codes, stem = weight.cpu(), codes_of(packed), self.stored.stem_of(name)
        parts = {"weight": weight}
        if codes is not None:
            as_codes = _tensors(codes)
            read = self._decompressed(as_codes)
            if read is not None and torch.equal(read.to(weight.dtype), weight):
                parts = as_codes
        tensors = {f"{stem}{part}": tensor for part, tensor in parts.items()}
        known = {key: _kind(tensor) for key, tensor in self._tensors[name].items()}
        if known != {key: _kind(tensor) for key, tensor in tensors.items()}:
            self._tensors[name] = {key: torch.empty_like(t, device="meta") for key, t in tensors.items()}
            self.fits = False
        return tensors

    def configure(self, model: TransformersModel, folder: Path) -> list[str]:
        """Write the configuration. Returns warnings, above all the layers that are stored as plain weights."""
        stems = {layer: self.stored.stem_of(layer) for layer in self._tensors}
        plain = [layer for layer, tensors in self._tensors.items() if f"{stems[layer]}weight" in tensors]
        packed = [layer for layer in self._tensors if layer not in plain]
        settings = _quantization_config(self._recipe, _ignored(model, self.stored, packed), dtype=model.info.dtype)
        notes = [f"stored as plain weights: {name}" for name in plain]
        return notes + write_config(model, folder, quantization=settings)

    def _decompressed(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """The weight that the package reads; None where it fails, as for few rows with zero points (0.20)."""
        from compressed_tensors.compressors import BaseCompressor

        try:
            read = BaseCompressor.get_value_from_registry(FORMAT).decompress(dict(tensors), self._scheme)
            weight: Tensor = read["weight"]
        except Exception:  # noqa: BLE001 - it says nothing of how it fails
            return None
        return weight


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def _planned(rows: int, columns: int, bits: int, group: int | None, *, symmetric: bool) -> dict[str, Tensor]:
    """What `_tensors` will give for a weight (rows, columns), on the meta device."""
    groups = 1 if group is None else columns // group
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "weight_packed": ((rows, -(-columns * bits // 32)), torch.int32),
        "weight_scale": ((rows, groups), torch.float32),
        "weight_shape": ((2,), torch.int64),
    }
    if not symmetric:
        shapes["weight_zero_point"] = ((-(-rows * bits // 32), groups), torch.int32)
    return {part: torch.empty(shape, dtype=dtype, device="meta") for part, (shape, dtype) in shapes.items()}


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


def _quantization_config(recipe: Recipe, ignored: list[str], *, dtype: str) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={"group_0": _scheme(recipe)},
        format=FORMAT,
        quantization_status="compressed",
        ignore=ignored,
    )
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    grid = next(part for part in recipe.parts if isinstance(part, Grid))
    # transformers cannot load packed weights with zero points (compressed-tensors 0.20), and casts scales to the
    # precision of the model, which makes other weights of them. Neither holds where it unpacks the weights at once.
    if not grid.symmetric or dtype != "float32":
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
