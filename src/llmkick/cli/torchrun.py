"""Commands that torchrun starts as several processes: which of them speaks, and which commands may be started so."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import typer

from llmkick.errors import ConfigError, KickError
from llmkick.exit_codes import exit_code

SHARED_COMMANDS = ("compress",)


def is_several() -> bool:
    """Whether this is one of several processes that torchrun, or a launcher like it, has started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("0", "1")


def number(variable: str) -> int:
    """A number that torchrun gives each process in RANK (of all) or LOCAL_RANK (on one machine); 0 without it."""
    text = os.environ.get(variable, "0") if is_several() else "0"
    if not text.isdecimal():
        raise ConfigError(f"the variable {variable} is {text!r}, not the number of a process; start with torchrun")
    return int(text)


def refuse_several(command: str | None) -> None:
    """Raise ConfigError for a command that torchrun has started and that is for one process."""
    if "TORCHELASTIC_RUN_ID" in os.environ and is_several() and command not in SHARED_COMMANDS:
        raise ConfigError(
            f"kick {command} runs in one process; torchrun can start kick {' and kick '.join(SHARED_COMMANDS)}"
        )


@contextlib.contextmanager
def speaking(speaks: bool, command: str | None = None) -> Iterator[None]:
    """In a process that does not speak, warnings are dropped and an error is an exit code: another one tells it.

    command: the one that runs, whose exit codes may be its own.
    """
    if speaks:
        yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except KickError as error:
        raise typer.Exit(exit_code(error, command)) from error
