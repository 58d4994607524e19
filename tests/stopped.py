"""A command in a process of its own that a signal ends at a chosen write to its journal: each time at the same point.

Run as a script with the number of a signal, a number of records, and the arguments of `kick`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

SECONDS = 200


def run_until(stop: signal.Signals, arguments: list[object], *, records: int) -> subprocess.CompletedProcess[str]:
    """Run `kick` with these arguments; `stop` reaches it in the first transaction begun with more than `records`."""
    command = [sys.executable, __file__, str(int(stop)), str(records), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)


def _main() -> None:
    number, records = int(sys.argv[1]), int(sys.argv[2])
    del sys.argv[1:3]
    from llmkick import cli
    from llmkick.study.journal.journal import Journal

    transaction = Journal.transaction

    @contextlib.contextmanager
    def stopping(journal: Journal) -> Iterator[sqlite3.Connection]:
        with transaction(journal) as connection:
            (before,) = connection.execute("SELECT count(*) FROM records").fetchone()
            yield connection
            if before > records:
                os.kill(os.getpid(), number)  # before what was written is committed

    Journal.transaction = stopping  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a shell's background jobs ignore it
    cli.main()


if __name__ == "__main__":
    _main()
