"""The `kick` command: one module per command, each a few lines around the Python API."""

from __future__ import annotations

import errno
import io
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from llmkick.cli.common import app, err, out
from llmkick.cli.streams import drop_unwritable, print_error, unwritable_ignored
from llmkick.errors import KickError, plain_message
from llmkick.exit_codes import EXIT_ERROR, EXIT_INTERRUPTED, GATE, command_of, exit_code, failure

# isort: off
# Imported for the commands they define, in the order of `kick --help`.
from llmkick.cli import run, paper, compare, gate, compress, recover, evaluate, frontier, power  # noqa: F401
from llmkick.cli import report, claims, diff, export, import_lm_eval, export_lm_eval  # noqa: F401
from llmkick.cli import models, methods, tasks, cache, doctor  # noqa: F401
# isort: on

__all__ = ["app", "err", "main", "out"]

# A disk that is full or that this user may not write to, a name that no file can have: no bug that a traceback would
# explain.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


# Commands that go on from what they keep. A gate without --out makes a new folder each time.
GO_ON = ("run", "compare", "frontier", "compress", "recover")


def main() -> NoReturn:
    """Run the command line. Expected errors become a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks "·" must not end a run of hours
    words = sys.argv[1:]
    code = _exit_code(words)
    if drop_unwritable() and not code:
        code = failure(EXIT_ERROR, command_of(words))
    sys.exit(code)


def _exit_code(words: Sequence[str]) -> int:
    command = command_of(words)
    try:
        code = app(standalone_mode=False)
        # typer returns the exit code of Ctrl-C and of --help in its newer versions and raises in its older ones.
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        return code or 0
    except typer.Exit as stop:
        return stop.exit_code
    except KickError as error:
        print_error(error)
        return exit_code(error, command)
    except (KeyboardInterrupt, typer.Abort):
        goes_on = "; run the same command again to go on where it was" if _goes_on(words) else ""
        with unwritable_ignored():
            err.print(f"stopped{goes_on}", markup=False)
        return EXIT_INTERRUPTED
    except Exception as error:
        # The usage errors of click know how to show themselves.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            if hasattr(error, "message"):
                error.message = plain_message(str(error.message))
            with unwritable_ignored():
                error.show()
            return failure(error.exit_code, command)
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            print_error(error)
            return failure(EXIT_ERROR, command)
        if command != GATE:
            raise
        with unwritable_ignored():
            traceback.print_exc()
        return failure(EXIT_ERROR, command)


def _goes_on(words: Sequence[str]) -> bool:
    """Whether the same command line goes on with what was done: it keeps that in a folder which it finds again."""
    command = command_of(words)
    names_folder = any(word in ("-o", "--out") or word.startswith("--out=") for word in words)
    return command in GO_ON or (command == GATE and names_folder)
