"""Checkpoints that other tools stored quantized: the method, the bits, and the packages that read them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmkick.errors import ModelError
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.weight_files import TensorFiles, config_json


class Reader(NamedTuple):
    """The modules that transformers needs to load a quantization, and the command that installs them."""

    modules: tuple[str, ...]
    install: str


# By the names of transformers 5. Methods that need no extra package, or that only a GPU can check, are left out.
READERS: Mapping[str, Reader] = {
    "gptq": Reader(("gptqmodel", "optimum"), "pip install gptqmodel optimum"),
    "awq": Reader(("gptqmodel",), "pip install gptqmodel"),
    "bitsandbytes": Reader(("bitsandbytes",), "pip install bitsandbytes"),
    "bitsandbytes_4bit": Reader(("bitsandbytes",), "pip install bitsandbytes"),
    "bitsandbytes_8bit": Reader(("bitsandbytes",), "pip install bitsandbytes"),
    "torchao": Reader(("torchao",), "pip install torchao"),
    "compressed-tensors": Reader(("compressed_tensors",), "pip install 'llmkick[compressed-tensors]'"),
    "hqq": Reader(("hqq",), "pip install hqq"),
    "quanto": Reader(("optimum.quanto",), "pip install optimum-quanto"),
    "aqlm": Reader(("aqlm",), "pip install 'aqlm[gpu,cpu]'"),
    "auto-round": Reader(("auto_round",), "pip install auto-round"),
    "eetq": Reader(("kernels",), "pip install kernels"),
    "vptq": Reader(("vptq",), "pip install vptq"),
    "spqr": Reader(("spqr_quant",), "pip install 'spqr_quant[gpu]'"),
    "quark": Reader(("quark",), "pip install amd-quark"),
    "higgs": Reader(("flute", "fast_hadamard_transform"), "pip install flute-kernel fast_hadamard_transform"),
    "fp_quant": Reader(("fp_quant",), "pip install fp_quant"),
}


# Methods whose weights are read as plain ones, see `plain_tensors`: they load like a model that was never quantized.
DEQUANTIZED = ("fp8", "mxfp8", "fbgemm_fp8", "mxfp4", "metal", "compressed-tensors")
# Files and keys of config.json by which tools describe a quantization that transformers does not look at.
DESCRIPTIONS = {
    "hf_quant_config.json": "NVIDIA ModelOpt",
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "quanto_qmap.json": "Quanto",
}
KEYS = {"quantization": "MLX", "compression_config": "an old version of compressed-tensors"}
# Parts of quantized weights, by the last part of their name, and types of values that mean nothing without a scale.
QUANTIZED_NAMES = re.compile(
    r"(^|[._])(qweight|qzeros|qscale_weight|weight_(scale|scale_inv|scale_2|packed|zero_point|global_scale))$"
)
QUANTIZED_TYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2")


def quantization_of(folder: Path) -> dict[str, Any]:
    """The quantization that a folder's configuration states, also in that of its text model; empty for plain weights.

    It is empty for a damaged config.json too: loading refuses that file with an error of its own.
    """
    config = config_json(folder)
    try:
        stated = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
        return dict(stated or {})
    except (AttributeError, TypeError, ValueError):
        return {}


def require_description(files: TensorFiles, stated: Mapping[str, Any]) -> None:
    """Raise ModelError for quantized weights that config.json does not describe, or by a method that is unknown.

    transformers would take their codes for values, without their scales.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    folder, method = files.folder, method_of(stated)
    advice = "give the original model, or ask this one through a server (openai:URL#NAME)"
    if method:
        methods = [*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"]
        if method not in methods:
            raise ModelError(
                f"{folder / 'config.json'} states the quantization {method!r}, which transformers does not read (it "
                f"reads {', '.join(sorted(methods))}): {advice}"
            )
        return
    config = config_json(folder)
    by_key = next((f"{key!r} in config.json ({tool})" for key, tool in KEYS.items() if config.get(key)), "")
    by_file = next((f"{file} ({tool})" for file, tool in DESCRIPTIONS.items() if (folder / file).exists()), "")
    described = f"{by_key or by_file} describes it" if by_key or by_file else "nothing else in the folder describes it"
    for name, header in sorted(files.headers.items()):
        if header.dtype in QUANTIZED_TYPES or QUANTIZED_NAMES.search(name):
            raise ModelError(
                f"{header.file}: {name} ({header.dtype}) belongs to quantized weights, but config.json has no "
                f"quantization_config that says how to read them; {described}: {advice}"
            )
    if by_key or (by_file and _has_codes(files)):
        raise ModelError(f"the weights in {folder} are quantized, but {described}, and not config.json: {advice}")


def _has_codes(files: TensorFiles) -> bool:
    return any(h.dtype in ("I8", "U8", "I32", "U32") and len(h.shape) == 2 for h in files.headers.values())


def method_of(stated: Mapping[str, Any]) -> str:
    """The method's name in transformers; empty for plain weights. Old bitsandbytes folders state no name."""
    if not stated:
        return ""
    loads = any(stated.get(key) for key in ("load_in_4bit", "load_in_8bit"))
    return str(stated.get("quant_method") or ("bitsandbytes" if loads else "unknown"))


def precision_of(stated: Mapping[str, Any]) -> str:
    """The stored precision as tables print it, for example "gptq 4b"; "float" for plain weights."""
    method = method_of(stated)
    if not method:
        return "float"
    bits = stated.get("bits") or stated.get("w_bit") or stated.get("nbits")
    if method.startswith("bitsandbytes"):
        method, bits = "bitsandbytes", 4 if stated.get("load_in_4bit") else 8
    return f"{method} {bits}b" if isinstance(bits, int) else method


def has_packed_integers(checkpoint: Checkpoint) -> bool:
    """Whether the weights of a model stay packed in modules of their own when it is loaded."""
    return bool(checkpoint.quantization) and checkpoint.quantization not in DEQUANTIZED


def refuse_packed_integers(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a model that cannot be compressed: its weights stay packed integers when it is loaded."""
    if has_packed_integers(checkpoint):
        raise ModelError(
            f"{checkpoint.name} cannot be compressed: its weights, quantized by {checkpoint.quantization}, stay packed "
            "integers when it is loaded (it can be evaluated); give the model that it was made from"
        )


def require_reader(name: str, stated: Mapping[str, Any]) -> None:
    """Raise ModelError, before anything is loaded, when the package that reads a quantization is missing."""
    method = method_of(stated)
    reader = READERS.get(method)
    missing = [module for module in reader.modules if not _is_installed(module)] if reader else []
    if reader and missing:
        raise ModelError(
            f"the weights of {name} are quantized by {method}, which needs {' and '.join(missing)} to be read; "
            f"not installed here: {reader.install}"
            + ("" if method in DEQUANTIZED else " (to evaluate it; such a model cannot be compressed)")
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a submodule is missing
        return False
