"""What the commands share: the application, the two consoles, options, and errors that must show early."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llmkick.errors import ConfigError

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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …, or balanced: over all GPUs")]
Timeout = Annotated[float, typer.Option(help="of servers: seconds a request")]
Concurrency = Annotated[int, typer.Option(help="of servers: requests under way at once")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]


# What a command may be asked of.
MODEL_HELP = "built-in name, folder, hub id, .gguf file, or a server: openai:URL#NAME"


def given(context: typer.Context) -> list[str]:
    """The parameters that were typed, not left at their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def check_file_target(path: Path) -> None:
    """Raise ConfigError, before hours of work, when a file cannot be written there."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; give another file") from error


def print_notes(notes: list[str]) -> None:
    """Lines that a reader of the table above must know."""
    for note in notes:
        out.print(f"note: {note}", markup=False, highlight=False)
