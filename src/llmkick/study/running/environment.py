"""The environment of a run: package versions, processor, memory, threads and device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

import psutil
import torch

from llmkick.models.transformers_model import TransformersModel
from llmkick.plugins import GROUPS, installed
from llmkick.study.results.records import Environment


def environment(model: TransformersModel | None = None) -> Environment:
    """Return the environment of a run: package versions, processor, memory in bytes, threads and device."""
    packages = ("llmkick", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas")
    plugins = {plugin.package: plugin.version for group in GROUPS for plugin in installed(group)}
    return Environment(
        packages={**{name: importlib.metadata.version(name) for name in packages}, **plugins},
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=str(model.device) if model is not None else "",
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
