"""The `kick` command: one module per command, each a few lines around the Python API."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from llmkick.cli.common import app, err, out
from llmkick.cli.exit_codes import EXIT_ERROR, EXIT_INTERRUPTED, exit_code
from llmkick.errors import KickError, plain_message

# isort: off
# Imported for the commands they define, in the order of `kick --help`.
from llmkick.cli import run, paper, compare, gate, compress, recover, evaluate, frontier, power  # noqa: F401
from llmkick.cli import report, claims, diff, export, import_lm_eval, export_lm_eval  # noqa: F401
from llmkick.cli import models, methods, tasks, cache, doctor  # noqa: F401
# isort: on

__all__ = ["app", "err", "main", "out"]

# A disk that is full, or that this user may not write to: no bug that a traceback would explain.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


# Commands that go on from what they keep. A gate without --out makes a new folder each time.
GO_ON = ("run", "compare", "frontier", "compress", "recover")


def main() -> NoReturn:
    """Run the command line. Expected errors become a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks "·" must not end a run of hours
    try:
        code = app(standalone_mode=False)
        # typer returns the exit code of Ctrl-C and of --help in its newer versions and raises in its older ones.
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KickError as error:
        _print_error(error)
        sys.exit(exit_code(error))
    except (KeyboardInterrupt, typer.Abort):
        goes_on = "; run the same command again to go on where it was" if _goes_on(sys.argv[1:]) else ""
        err.print(f"stopped{goes_on}", markup=False)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        # The usage errors of click know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            if hasattr(error, "message"):
                error.message = plain_message(str(error.message))
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            _print_error(error)
            sys.exit(EXIT_ERROR)
        raise


def _goes_on(words: Sequence[str]) -> bool:
    """Whether the same command line goes on with what was done: it keeps that in a folder which it finds again."""
    command = next((word for word in words if not word.startswith("-")), "")
    names_folder = any(word in ("-o", "--out") or word.startswith("--out=") for word in words)
    return command in GO_ON or (command == "gate" and names_folder)


def _print_error(error: Exception) -> None:
    err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
