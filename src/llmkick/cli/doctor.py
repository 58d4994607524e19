"""`kick doctor`: is this machine fit for a run?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.table import Table

from llmkick.cli.common import LISTS, app, out
from llmkick.errors import KickError
from llmkick.plugins import GROUPS, installed

if TYPE_CHECKING:
    import torch

LEAST_FREE_BYTES = 2e9
# The built-in model with its batches takes about this much.
LEAST_FREE_MEMORY = 2e9


@app.command(rich_help_panel=LISTS)
def doctor() -> None:
    """Check this machine: device, precision, memory, disk, cached models.

    Example:

        kick doctor
    """
    import torch

    from llmkick.files import cache_folder, check_cache
    from llmkick.models.precision import resolve_device

    device, cache = resolve_device("auto"), cache_folder("")
    table = Table("what", "found", show_header=False)
    for row in _facts(device, cache):
        table.add_row(*row)
    out.print(table)
    # The smallest computation that fails on a broken installation.
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    if not bool((product == 64).all()):
        raise KickError(f"{device} computes wrong results: 64 × 1 × 1 is not 64")
    check_cache()
    if shutil.disk_usage(cache).free < LEAST_FREE_BYTES:
        raise KickError(f"less than 2 GB are free in {cache}; set LLMKICK_CACHE to another disk")
    for line in _slow(device):
        out.print(f"slow: {line}", highlight=False)
    out.print("all well")


def _slow(device: torch.device) -> list[str]:
    """What makes runs slow on this machine, why, and what would help."""
    import torch

    from llmkick.models.precision import why_float32

    lines = []
    if device.type == "cpu":
        lines.append("no GPU is seen: models run on the processor")
    reason = why_float32(device)
    if reason is not None:
        lines.append(f"models run in float32, at about half the speed of bfloat16: {reason}")
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    limit = os.environ.get("OMP_NUM_THREADS")
    if device.type == "cpu" and threads < cores / 2:
        because = f"OMP_NUM_THREADS is {limit}" if limit else "torch's default here"
        lines.append(f"torch uses {threads} of {cores} processors ({because})")
    free = psutil.virtual_memory().available
    if free < LEAST_FREE_MEMORY:
        lines.append(f"only {free / 1e9:.1f} GB of memory are free: large batches are split")
    return lines


def _facts(device: torch.device, cache: Path) -> list[tuple[str, str]]:
    """Rows on this machine: packages, processor, memory, device, precision, cache, plug-ins, models."""
    from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, is_cached
    from llmkick.models.precision import resolve_dtype
    from llmkick.study.running.environment import environment

    machine = environment()
    plugins = [plugin for group in GROUPS for plugin in installed(group)]
    return [
        ("python", machine.python),
        *machine.packages.items(),
        ("processor", f"{machine.processor}, {machine.cores} cores, {machine.threads} threads used"),
        ("memory", f"{(machine.memory_bytes or 0) / 1e9:.1f} GB"),
        ("device", f"{device} {machine.accelerator or ''}".strip()),
        ("dtype auto", str(resolve_dtype("auto", device)).removeprefix("torch.")),
        ("cache", f"{cache}, {shutil.disk_usage(cache).free / 1e9:.1f} GB free"),
        *((f"plug-in {plugin.name}", f"{plugin.group}, from {plugin.origin}") for plugin in plugins),
        *((name, "cached" if is_cached(name) else "fetched at first use (93 MB)") for name in BUILTIN_MODELS),
    ]
