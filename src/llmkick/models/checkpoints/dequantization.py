"""Quantized tensors as the plain weights that they stand for: FP8, FP4 and integers with scales."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.weight_files import TensorFiles

# The values of the 16 codes of FP4 (E2M1), OCP Microscaling Formats v1.0 §5.3.3.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# As safetensors names the types of quantized values.
FP8_TYPES = ("F8_E4M3", "F8_E5M2")
PACKED_FP4_TYPES = ("I8", "F4")
SCALE_SUFFIXES = ("_scale_inv", "_scale", ".scale", ".qscale_weight", ".qscale_act")


class StoredAs(NamedTuple):
    """A weight: the tensors that store it, by their role, its shape, and the function that computes it from them."""

    parts: dict[str, str]
    shape: tuple[int, ...]
    decode: Callable[[Mapping[str, Tensor]], Tensor]


Stored = Iterator[tuple[str, StoredAs]]


def fp8_weights(method: str, stated: Mapping[str, Any], files: TensorFiles) -> Stored:
    """FP8 values, or pairs of FP4 values, times a scale for each tensor, row or block.

    `method` is "fp8", "mxfp8" or "fbgemm_fp8"; `stated` is the quantization_config. Raises ModelError naming a tensor
    without a scale that fits.
    """
    packs_fp4 = stated.get("expert_dtype") == "fp4"
    for name, header in files.headers.items():
        if header.dtype not in FP8_TYPES and not (packs_fp4 and header.dtype in PACKED_FP4_TYPES):
            continue
        if any(name.endswith(suffix) for suffix in SCALE_SUFFIXES):
            continue  # a scale that is itself stored in 8 bits
        scale = next((other for other in _scale_names(name) if other in files.headers), None)
        if scale is None:
            raise ModelError(
                f"{header.file}: {name} is stored as {header.dtype} without a scale ({_scale_names(name)[0]}): its "
                "values cannot be told; fetch the model again, or give the original one"
            )
        shape = header.shape
        if header.dtype in PACKED_FP4_TYPES:
            shape = (*shape[:-1], 2 * shape[-1])
        layout = _scale_layout(method, stated.get("weight_block_size"), shape, files.shape(scale))
        if layout is None:
            raise ModelError(
                f"{header.file}: {scale} has shape {files.shape(scale)}, which fits no blocks of {name} {shape} "
                f"(weight_block_size in config.json is {stated.get('weight_block_size')})"
            )
        yield name, StoredAs({"weight": name, "scale": scale}, shape, functools.partial(_scaled, layout))


def _scale_names(name: str) -> list[str]:
    """The names that tools give to the scale of a tensor; all of them are factors, "inv" or not."""
    names = [f"{name}_scale_inv", f"{name}_scale"]
    if name.endswith(".weight"):
        names += [f"{name.removesuffix('weight')}scale", f"{name.removesuffix('weight')}qscale_weight"]
    return names


class ScaleLayout(NamedTuple):
    """The shape in which scales line up with the axes of their weight, and the rows and columns that share one."""

    grid: tuple[int, ...]
    rows: int
    columns: int


def _scale_layout(
    method: str, block: Sequence[int] | None, shape: tuple[int, ...], scale: tuple[int, ...]
) -> ScaleLayout | None:
    """How the scales of a weight are laid out; None where they fit in no known way.

    The last block of an axis may be smaller than the others, as in DeepSeek-V3 (576 rows in blocks of 128).
    """
    rows, columns = shape[-2:] if len(shape) > 1 else (1, shape[0])
    count = math.prod(scale)
    if count == 1:
        return ScaleLayout((1,) * len(shape), rows, columns)
    if method == "fbgemm_fp8" and len(shape) == 3:  # experts (experts, in, out), with a scale for each output
        return ScaleLayout((shape[0], 1, columns), rows, 1) if count == shape[0] * columns else None
    if scale == shape[:-1]:
        return ScaleLayout((*scale, 1), 1, columns)
    if len(shape) == 3 and count == scale[0] == shape[0]:
        return ScaleLayout((count, 1, 1), rows, columns)
    if len(scale) != len(shape) or len(shape) < 2 or scale[:-2] != shape[:-2]:
        return None
    if block and (math.ceil(rows / block[0]), math.ceil(columns / block[1])) == scale[-2:]:
        return ScaleLayout(scale, block[0], block[1])
    if rows % scale[-2] or columns % scale[-1]:
        return None
    return ScaleLayout(scale, rows // scale[-2], columns // scale[-1])


def _scaled(layout: ScaleLayout, parts: Mapping[str, Tensor]) -> Tensor:
    weight, scale = _fp_values(parts["weight"]), _scale_values(parts["scale"]).reshape(layout.grid)
    if weight.dim() > 1:
        scale = _spread(scale, layout.rows, weight.shape[-2], -2)
    return weight * _spread(scale, layout.columns, weight.shape[-1], -1)


def _spread(scale: Tensor, block: int, count: int, axis: int) -> Tensor:
    """Each scale repeated over the `block` entries that share it, cut to `count` entries."""
    return scale.repeat_interleave(block, dim=axis).narrow(axis, 0, count)


def _fp_values(stored: Tensor) -> Tensor:
    """The float32 values of an FP8 tensor, or of a tensor of bytes with two FP4 codes each, the lower first."""
    if stored.dtype.is_floating_point and stored.dtype != getattr(torch, "float4_e2m1fn_x2", None):
        return stored.float()
    codes = stored.contiguous().view(torch.uint8)
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1).long()
    return torch.tensor(FP4_VALUES)[pairs].reshape(*codes.shape[:-1], 2 * codes.shape[-1])


def _scale_values(stored: Tensor) -> Tensor:
    """Scales in float32; bytes are exponents of two with a bias of 127 (E8M0)."""
    if stored.dtype in (torch.uint8, torch.int8):
        return torch.exp2(stored.view(torch.uint8).float() - 127)
    return stored.float()


def mxfp4_weights(files: TensorFiles) -> Stored:
    """Experts of gpt-oss: blocks (experts, out, groups, 16) of two codes a byte, with scales (experts, out, groups).

    The weights are (experts, in, out). Raises ModelError naming blocks without scales.
    """
    headers = files.headers
    for name, header in headers.items():
        plain = name.removesuffix("_blocks")
        if plain == name or header.dtype != "U8":
            continue
        scales = f"{plain}_scales"
        if scales not in headers or headers[scales].shape != header.shape[:-1] or len(header.shape) != 4:
            raise ModelError(
                f"{header.file}: {name} has no {scales} of shape {header.shape[:-1]}: its values cannot be told; "
                "fetch the model again"
            )
        experts, rows, groups, width = header.shape
        yield plain, StoredAs({"blocks": name, "scales": scales}, (experts, 2 * groups * width, rows), _mxfp4_decoder)


def _mxfp4_decoder(parts: Mapping[str, Tensor]) -> Tensor:
    values = _fp_values(parts["blocks"]) * _scale_values(parts["scales"])[..., None]
    return values.flatten(-2).transpose(1, 2).contiguous()


def affine_weights(stated: Mapping[str, Any], files: TensorFiles) -> Stored:
    """Codes of 2, 4 or 8 bits in words of 32, times a scale plus a bias for each group (Metal, MLX).

    Raises ModelError for other bits, and naming codes without scales or biases.
    """
    bits = stated.get("bits", 4)
    if bits not in (2, 4, 8):
        raise ModelError(f"{files.folder}: its quantization_config states bits = {bits}; 2, 4 and 8 can be read")
    for name, header in files.headers.items():
        stem = name.removesuffix("weight")
        if header.dtype not in ("U32", "I32") or stem == name:
            continue
        parts = {"weight": name, "scales": f"{stem}scales", "biases": f"{stem}qbiases"}
        absent = [part for part in parts.values() if part not in files.headers]
        if absent:
            raise ModelError(
                f"{header.file}: {name} has no {absent[0]}: its values cannot be told; fetch the model again"
            )
        shape = (*header.shape[:-1], header.shape[-1] * 32 // bits)
        yield name, StoredAs(parts, shape, functools.partial(_affine, bits))


def _affine(bits: int, parts: Mapping[str, Tensor]) -> Tensor:
    words = parts["weight"].view(torch.int32).long() & 0xFFFFFFFF
    codes = ((words[..., None] >> torch.arange(0, 32, bits)) & ((1 << bits) - 1)).flatten(-2)
    group = codes.shape[-1] // parts["scales"].shape[-1]
    scale, bias = (parts[role].float().repeat_interleave(group, dim=-1) for role in ("scales", "biases"))
    return codes.float() * scale + bias
