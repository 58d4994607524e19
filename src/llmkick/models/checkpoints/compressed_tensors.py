"""The weights of a checkpoint in the form of the package compressed-tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.dequantization import Stored, StoredAs
from llmkick.models.checkpoints.weight_files import TensorFiles

PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape")


def packed_weights(stated: Mapping[str, Any], files: TensorFiles) -> Stored:
    """The quantized weights; each is decompressed by the scheme of its own layer, which may differ between layers.

    `stated` is the quantization_config. Raises ModelError for what the package does not read: sparse formats,
    rotations of the inputs, and columns in the order of their activations.
    """
    from compressed_tensors.quantization import QuantizationConfig

    sparsity = (stated.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise _unreadable(files, f"the sparse format {sparsity}")
    if (stated.get("transform_config") or {}).get("config_groups"):
        raise _unreadable(files, "rotations of activations (transform_config)")
    if not stated.get("config_groups"):
        raise _unreadable(files, "a quantization_config without config_groups")
    fields = {key: value for key, value in stated.items() if key in QuantizationConfig.model_fields}
    config = QuantizationConfig.model_validate(fields)
    for name in files.headers:
        layer = name.removesuffix(".weight_scale")
        if layer != name:
            yield f"{layer}.weight", _packed_weight(layer, config, files)


def _packed_weight(layer: str, config: Any, files: TensorFiles) -> StoredAs:
    from compressed_tensors.compressors import BaseCompressor

    scheme = _scheme_of(layer, config, files)
    parts = {part: f"{layer}.{part}" for part in PARTS if f"{layer}.{part}" in files.headers}
    stored = parts.get("weight_packed") or parts.get("weight")
    if stored is None:
        raise ModelError(f"{files.folder}: {layer}.weight_scale has no weight beside it; fetch the model again")
    order = f"{layer}.weight_g_idx"
    if order in files.headers and not _is_plain(files.read(order), scheme.weights.group_size):
        raise _unreadable(files, f"columns in the order of their activations ({order})")
    form = scheme.format or config.format
    name = getattr(form, "value", form)
    try:
        compressor = BaseCompressor.get_value_from_registry(name)
    except KeyError as error:
        raise _unreadable(files, f"the format {name}") from error
    shape = files.shape(stored)
    if "weight_shape" in parts:
        shape = tuple(files.read(parts["weight_shape"]).tolist())
    elif "weight_packed" in parts:  # bytes with codes of fewer bits
        shape = (*shape[:-1], shape[-1] * 8 // scheme.weights.num_bits)
    return StoredAs(parts, shape, functools.partial(_decompressed, compressor, scheme))


def _decompressed(compressor: Any, scheme: Any, parts: Mapping[str, Tensor]) -> Tensor:
    weight: Tensor = compressor.decompress(dict(parts), scheme)["weight"]
    return weight.detach()


def _scheme_of(layer: str, config: Any, files: TensorFiles) -> Any:
    """The scheme of a layer: of the group that names it, then one that matches it, then one of its class."""
    from compressed_tensors.utils import match_name

    groups = list(config.config_groups.values())
    by_name = [group for group in groups if any(target == layer for target in group.targets)]
    by_pattern = [g for g in groups if any(t.startswith("re:") and match_name(layer, t) for t in g.targets)]
    by_class = [group for group in groups if any("." not in t and not t.startswith("re:") for t in group.targets)]
    chosen = by_name or by_pattern or by_class
    if not chosen or any(group.weights != chosen[0].weights or group.format != chosen[0].format for group in chosen):
        raise ModelError(
            f"{files.folder}: the quantization_config has {len(chosen)} groups for {layer}, whose weights are "
            "quantized: it cannot be told how; give the original model"
        )
    return chosen[0]


def _is_plain(order: Tensor, group_size: int | None) -> bool:
    """Whether the groups of the columns are in order, as without `weight_g_idx`; -1 says that they were not set."""
    columns = torch.arange(order.numel())
    return bool((order == -1).all()) or (group_size is not None and torch.equal(order.long(), columns // group_size))


def _unreadable(files: TensorFiles, what: str) -> ModelError:
    return ModelError(
        f"{files.folder} is stored by compressed-tensors with {what}, which the installed package does not read: give "
        "the original model, or ask it through a server (openai:URL#NAME)"
    )
