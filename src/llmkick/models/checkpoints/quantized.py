"""Checkpoints that other tools stored quantized: the method, the bits, and the packages that read them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmkick.errors import ModelError


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


def quantization_of(folder: Path) -> dict[str, Any]:
    """The quantization that a folder's configuration states; empty for plain weights.

    It is empty for a damaged config.json too: loading refuses that file with an error of its own.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = config.get("quantization_config") or {}
        return dict(stated)
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


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


def require_reader(name: str, stated: Mapping[str, Any]) -> None:
    """Raise ModelError, before anything is loaded, when the package that reads a quantization is missing."""
    method = method_of(stated)
    reader = READERS.get(method)
    missing = [module for module in reader.modules if not _is_installed(module)] if reader else []
    if reader and missing:
        raise ModelError(
            f"the weights of {name} are quantized by {method}, which needs {' and '.join(missing)} to be read; "
            f"not installed here: {reader.install}"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a submodule is missing
        return False
