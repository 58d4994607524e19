"""What the commands share: the application, both consoles, studies made from options, and early checks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import llmkick
from llmkick.cli.torchrun import number, refuse_several, speaking
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.plugins import Plugin
    from llmkick.study.spec.study import Study

# Threads that spin long while they wait starve each other when anything else runs on the machine: beside one busy
# process they take twenty times as long. Threads that sleep at once take a third longer on a quiet machine, because the
# operations of a small model are short. So they spin for some microseconds. OpenMP reads this when torch is first
# imported, which happens later than this line.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the OpenMP of LLVM and Intel counts milliseconds: it sleeps at once

# The panels of commands in `kick --help`.
STUDIES, RESULTS, LISTS = "Measure and compress", "Read and exchange results", "See what is available"

app = typer.Typer(
    name="kick",
    help="Tells you what a compressed language model has forgotten.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
# Names may contain brackets, `wanda@0.5 [sequences=8]`, which are no markup.
out = Console(markup=False)
err = Console(stderr=True, markup=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kick {llmkick.__version__}")
        raise typer.Exit


@app.callback()
def kick(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Parse the options that stand before the name of a command."""
    with speaking(number("LOCAL_RANK") == 0, context.invoked_subcommand):
        refuse_several(context.invoked_subcommand)


def given(context: typer.Context) -> list[str]:
    """The names of the parameters that were typed rather than left at their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def study_of(folder: Path | None, name: str, **values: object) -> Study:
    """The study that options describe; it is called after its folder, or by `name` without one."""
    from llmkick.study.spec.study import make_study

    return make_study({"name": folder.name if folder else name, **values})


def check_file_target(path: Path) -> None:
    """Raise ConfigError if a file cannot be written at this path, before hours of work are spent on it."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; give another file") from error


def print_line(text: str) -> None:
    """Print a line to standard output as it is: no markup, no colours, no line breaks inside paths."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_notes(notes: Sequence[str]) -> None:
    """Print what a reader of the table above has to know."""
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False)


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings to standard error, in yellow."""
    for warning in warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def list_table(*columns: str) -> Table:
    """A table whose columns keep their words in one piece; only the last column, the prose, is wrapped."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1])
    return table


def with_origin(summary: str, plugin: Plugin | None) -> str:
    """A summary, and the package that it comes from if that is a plug-in."""
    return summary if plugin is None else f"{summary} (from {plugin.origin})"
