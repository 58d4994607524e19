"""A command in a process of its own that a signal ends at a chosen write to its journal: always the same one."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import Ended, run_commands, run_kick
from shorter import short_answers


def run_until(stop: signal.Signals, folder: Path, *arguments: object, records: int) -> Ended:
    """Run `kick` with these arguments; `stop` reaches it in the first transaction begun with more than `records`.

    `folder` is where its output goes.
    """
    (ended,) = run_commands(_stopped, folder, [{}], stop, records, *map(str, arguments))
    return ended


def _stopped(stop: signal.Signals, records: int, *arguments: str) -> None:
    from llmkick.study.journal.journal import Journal

    transaction = Journal.transaction

    @contextlib.contextmanager
    def stopping(journal: Journal) -> Iterator[sqlite3.Connection]:
        with transaction(journal) as connection:
            (before,) = connection.execute("SELECT count(*) FROM records").fetchone()
            yield connection
            if before > records:
                os.kill(os.getpid(), stop)  # before what was written is committed

    short_answers(pytest.MonkeyPatch())  # as in the process of the tests
    journal: Any = Journal
    journal.transaction = stopping
    run_kick(*arguments)
