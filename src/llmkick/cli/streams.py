"""Standard streams that cannot be written: a full disk, or a reader of a pipe that has left."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from llmkick.cli.common import err


@contextlib.contextmanager
def unwritable_ignored() -> Iterator[None]:
    """Leave out a last message that its stream does not take: the exit code has to say it alone.

    rich turns a broken pipe into the exit code 1.
    """
    with contextlib.suppress(OSError, ValueError, SystemExit):
        yield


def print_error(error: BaseException | str) -> None:
    """Print the message of an expected error to standard error."""
    with unwritable_ignored():
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def drop_unwritable() -> bool:
    """Drop what a stream still holds and cannot write, and return whether there was any.

    Python would try again at its end, and exit with 120.
    """
    lost = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            lost = True
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return lost
