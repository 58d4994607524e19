"""Several processes that torch.distributed connects, each of which calls a function of its rank."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_processes(function: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """What function(rank, *arguments) returns in each process; {"error": …} if it raised, None if the process died."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run, args=(function, folder, rank, count, arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
            raise AssertionError("a process hangs")
    files = [folder / f"{rank}.json" for rank in range(count)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def _run(function: Callable[..., Any], folder: Path, rank: int, count: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        result = function(rank, *arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        result = {"error": type(error).__name__, "text": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
