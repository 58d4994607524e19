"""Choice of the device and the precision of a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.errors import ConfigError
from llmkick.files import cache_folder, write_cached

# A network spread over all visible CUDA devices, in the order of its blocks.
BALANCED = "balanced"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# bfloat16 must take less than this share of the time of float32 to be preferred.
WORTHWHILE = 0.9
CPU_FACTS = Path("/proc/cpuinfo")


def resolve_device(device: str) -> torch.device:
    """ "auto" → CUDA when there is one, else the CPU; "balanced" → the first of the GPUs that share a network.

    Raises ConfigError for a device that is not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == BALANCED:
        if torch.cuda.device_count() == 0:
            raise ConfigError(
                f"device {device!r} spreads a model over CUDA devices, and there is none; use auto or cpu"
            )
        return torch.device("cuda:0")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device!r} is not available here: {error}; use auto, cpu, cuda or {BALANCED}"
        ) from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" → bfloat16 where `device` is faster in it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if _is_faster_in_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; choose from: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _is_faster_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or platform.system() != "Linux" or not CPU_FACTS.exists():
        return False
    features = _bfloat16_features()
    if not features:
        return False
    facts = CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    names = {line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith(("model", "stepping"))}
    return _measured_once("\0".join([*sorted(names), *features, torch.__version__]))


def _bfloat16_features() -> list[str]:
    """The processor's bfloat16 instructions; without them torch emulates bfloat16 at a fifth of the speed.

    x86: avx512_bf16 and amx_bf16; Arm: bf16.
    """
    words = set(CPU_FACTS.read_text(encoding="utf-8", errors="replace").split())
    return sorted(words & {"avx512_bf16", "amx_bf16", "bf16"})


def why_float32(device: torch.device) -> str | None:
    """The reason why `dtype = "auto"` is float32 on a device; None where it is bfloat16."""
    if _is_faster_in_bfloat16(device):
        return None
    if device.type == "cuda":
        return "this GPU has no bfloat16"
    if device.type != "cpu" or platform.system() != "Linux" or not CPU_FACTS.exists():
        return f"bfloat16 is not tried on {device.type} under {platform.system()}"
    if not _bfloat16_features():
        return "this processor has no bfloat16 instructions (avx512_bf16, amx_bf16)"
    return "this processor has bfloat16 instructions, but multiplies no faster with them"


def _measured_once(processor: str) -> bool:
    """Whether a matrix product takes less time in bfloat16 on this processor, measured once and remembered.

    The CPU feature is not enough: some Xeons without AMX multiply bfloat16 at half the speed of float32, some EPYCs
    at twice. It is not measured again each time, or a busy moment could change the precision of a study.
    """
    file = cache_folder("processor") / f"{hashlib.sha256(processor.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return bool(json.loads(file.read_text(encoding="utf-8"))["faster_in_bfloat16"])
    seconds = _product_seconds()
    faster = seconds["bfloat16"] < WORTHWHILE * seconds["float32"]
    write_cached(file, json.dumps({"faster_in_bfloat16": faster, "seconds": seconds}) + "\n")
    return faster


def _product_seconds() -> dict[str, float]:
    """The shortest of several alternating runs of a layer's matrix product, in seconds, for both precisions."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(512, 1024, generator=generator), torch.randn(1024, 1024, generator=generator)
    best = dict.fromkeys(("float32", "bfloat16"), float("inf"))
    for _ in range(7):
        for name in best:
            best[name] = min(best[name], _seconds(rows.to(DTYPES[name]), weight.to(DTYPES[name])))
    return best


def _seconds(rows: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    F.linear(rows, weight)
    return time.perf_counter() - started
