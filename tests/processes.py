"""Processes of their own, for what one process cannot show: several of torch.distributed, and commands of `kick`.

They are forked from one that has imported what takes seconds, once for all tests of a worker. It has run nothing, and
has one thread, so that a fork of it is as good as a new process.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from disk import usage_with_room

CONTEXT = multiprocessing.get_context("forkserver")
# What a command, a compression or the load of a model imports; transformers imports most modules when it needs them.
# Not `llmkick.cli`, which looks for the width of its terminal when it is imported.
CONTEXT.set_forkserver_preload([
    "torch.distributed", "typer", "rich.progress",
    *(f"llmkick.{name}" for name in (
        "compression.kernels.compiled", "models.checkpoints.compiled_packing",
        "models.checkpoints.loading", "models.engine.generation", "models.engine.scoring", "report.page.page",
        "study.run", "tasks.suite.factoid_qa",
    )),
    *(f"transformers.{name}" for name in (
        "convert_slow_tokenizer", "integrations.compressed_tensors", "models.auto.tokenization_auto",
        "models.gpt2.modeling_gpt2", "models.llama.modeling_llama", "models.mixtral.modeling_mixtral",
        "quantizers.auto",
    )),
])  # fmt: skip
SECONDS = 240


class Ended(NamedTuple):
    """A command that has ended: its exit code, negative where a signal ended it, and what it wrote."""

    code: int | None
    out: str
    err: str


def run_processes(function: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """What function(rank, *arguments) returns in each process; {"error": …} if it raised, None if the process died."""
    folder.mkdir(parents=True)
    _run_all(_call, [(dict(os.environ), function, folder, rank, count, arguments) for rank in range(count)])
    files = [folder / f"{rank}.json" for rank in range(count)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def run_commands(
    function: Callable[..., None], folder: Path, variables: Sequence[Mapping[str, str]], *arguments: Any
) -> list[Ended]:
    """Run function(*arguments), which runs a command, in a process for each set of environment variables, at once."""
    folder.mkdir(parents=True)
    environments = [{**os.environ, **own} for own in variables]
    codes = _run_all(_command, [(each, function, folder, rank, arguments) for rank, each in enumerate(environments)])
    return [
        Ended(code, *((folder / f"{rank}.{stream}").read_text(encoding="utf-8") for stream in ("out", "err")))
        for rank, code in enumerate(codes)
    ]


def print_modules(*names: str) -> None:
    """Import these modules and print all that are imported then, one a line."""
    for name in names:
        importlib.import_module(name)
    sys.stdout.write("\n".join(sys.modules))


def run_kick(*arguments: object) -> None:
    """`kick` with these arguments, which ends the process."""
    from llmkick import cli

    sys.argv = ["kick", *map(str, arguments)]
    cli.main()


def _run_all(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[int | None]:
    """The exit codes of processes that run at the same time."""
    processes = [CONTEXT.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=SECONDS)
        if process.is_alive():
            process.kill()
            raise AssertionError("a process hangs")
    return [process.exitcode for process in processes]


def _begin(environment: dict[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    shutil.disk_usage = usage_with_room
    torch.set_num_threads(1)


def _command(
    environment: dict[str, str], function: Callable[..., None], folder: Path, rank: int, arguments: tuple[Any, ...]
) -> None:
    _begin(environment)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with (folder / f"{rank}.{name}").open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server that forks has switched off
    function(*arguments)


def _call(
    environment: dict[str, str], function: Callable[..., Any], folder: Path, rank: int, count: int,
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    import torch.distributed as dist

    _begin(environment)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    try:
        result = function(rank, *arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        result = {"error": type(error).__name__, "text": str(error)}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
