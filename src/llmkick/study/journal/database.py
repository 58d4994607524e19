"""The SQLite file of a journal: its tables, transactions, and errors with advice for the user."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from llmkick.errors import ConfigError, DataError

JOURNAL_FILE, LOCK_FILE = "journal.sqlite", ".lock"
JOURNAL_SCHEMA = 1
# A record is on disk before the next batch starts, so it survives a power failure.
SYNCHRONOUS = "FULL"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    task TEXT NOT NULL, position INTEGER NOT NULL, item_id TEXT NOT NULL, cluster TEXT NOT NULL,
    question TEXT NOT NULL, context TEXT NOT NULL, reference TEXT NOT NULL, choices TEXT NOT NULL,
    PRIMARY KEY (task, item_id)
);
CREATE TABLE IF NOT EXISTS records (
    run_key TEXT NOT NULL, model TEXT NOT NULL, recipe TEXT NOT NULL, seed INTEGER, task TEXT NOT NULL,
    item_id TEXT NOT NULL, cluster TEXT NOT NULL, response TEXT NOT NULL, score REAL, unscored_reason TEXT,
    tokens INTEGER NOT NULL, truncated INTEGER NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (run_key, item_id)
);
CREATE TABLE IF NOT EXISTS artifacts (artifact_key TEXT PRIMARY KEY, digest TEXT NOT NULL, report TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS calibrations (
    calibration_key TEXT PRIMARY KEY, digest TEXT NOT NULL, source TEXT NOT NULL, seed INTEGER NOT NULL,
    sequences INTEGER NOT NULL, length INTEGER NOT NULL, tokens BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS noise (run_key TEXT PRIMARY KEY, found TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS judgements (
    judgement_key TEXT PRIMARY KEY, judge TEXT NOT NULL, prompt TEXT NOT NULL, task TEXT NOT NULL,
    item_id TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, replicate INTEGER NOT NULL,
    reply TEXT NOT NULL, cut INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS seconds (stage TEXT NOT NULL, detail TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
    task TEXT NOT NULL, item_id TEXT NOT NULL, base TEXT NOT NULL, head INTEGER NOT NULL, tail INTEGER NOT NULL,
    middle TEXT NOT NULL, PRIMARY KEY (task, item_id)
);
CREATE TABLE IF NOT EXISTS commands (started TEXT NOT NULL, version TEXT NOT NULL, command TEXT NOT NULL);
"""


class JournalFile:
    """The open file of a journal, with a lock for access from several threads.

    With `alone`, no other process can open it so until it is closed, because two runs would drop each other's records.
    Raises DataError if the folder has no journal (read-only mode) or the file cannot be opened as a journal, and
    ConfigError if another process has the folder for itself.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, alone: bool = False) -> None:
        self._turn = threading.RLock()
        self.path = folder / JOURNAL_FILE
        self._owner = _owned(folder) if alone else None
        if read_only and not self.path.exists():
            raise DataError(f"{folder} holds no {JOURNAL_FILE}: it is not the folder of a run")
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._disown)
            try:
                if read_only:
                    self.connection = open_to_read(self.path, cleanup)
                else:
                    self.connection = _connected(str(self.path), cleanup, uri=False)
                    self.connection.execute("PRAGMA journal_mode=WAL")
                    self.connection.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
                    self.connection.executescript(_TABLES)
                self.connection.execute("SELECT 1 FROM meta")
            except sqlite3.DatabaseError as error:
                raise DataError(f"{self.path} cannot be opened as a journal: {error}") from error
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._cleanup.close()

    def _disown(self) -> None:
        if self._owner is not None and self._owner.is_locked:
            with contextlib.suppress(OSError):  # first, while nobody else can have it
                Path(self._owner.lock_file).unlink(missing_ok=True)
            self._owner.release()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all writes of the `with` block, or none. Raises DataError if the file cannot be written."""
        with self._turn:
            yield from self._locked_transaction()

    def _locked_transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
                raise
            raise DataError(
                f"cannot write to the journal: {error}. What was journalled is safe: "
                "mend the cause (disk space, another run on the same folder) and run the same command again"
            ) from error

    def rows(self, query: str, values: Sequence[str | int | float | None] = ()) -> list[Any]:
        """Return the rows of a query as tuples. Raises DataError for a damaged file."""
        with self.reading():
            return self.connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Convert the errors of a damaged file to a DataError that names the file and a solution."""
        try:
            with self._turn:
                yield
        except (sqlite3.DatabaseError, pd.errors.DatabaseError, json.JSONDecodeError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged: {error}; restore it from a copy, or start again in an empty folder"
            ) from error


def open_to_read(path: Path, cleanup: contextlib.ExitStack) -> sqlite3.Connection:
    """Open the file of a journal and change nothing in its folder; `cleanup` closes it.

    Nobody needs to be able to write there. A damaged file is opened too: its rows tell.
    """
    connection = _connected(f"{path.resolve().as_uri()}?mode=ro", cleanup)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        # In WAL mode, SQLite makes a -shm file beside this one, or has to write to the one that is there.
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            connection.close()
            return _connected(_uri_without_writing(path, cleanup), cleanup)
    except sqlite3.DatabaseError:
        pass
    return connection


def _uri_without_writing(path: Path, cleanup: contextlib.ExitStack) -> str:
    """The address of a journal in a folder that is not writable, or of its copy in a folder that `cleanup` removes.

    A run that did not end by itself has left records in the -wal file, which SQLite leaves out of an immutable file.
    """
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or not log.stat().st_size:
        return f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="llmkick-")))
    for file in (path, log):
        shutil.copyfile(file, folder / file.name)
    return f"{(folder / path.name).resolve().as_uri()}?mode=ro"


def _connected(target: str, cleanup: contextlib.ExitStack, *, uri: bool = True) -> sqlite3.Connection:
    """Connect to a file by its address, or by its path without `uri`; `cleanup` closes the connection."""
    connection = sqlite3.connect(target, uri=uri, timeout=30, isolation_level=None, check_same_thread=False)
    cleanup.callback(connection.close)
    return connection


def _owned(folder: Path) -> FileLock | None:
    """Return the lock of a folder, which ends with the process; None on a file system without locks.

    Raises ConfigError if another process holds it.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process runs a study in {folder}: wait until it has ended, or give another --out"
        ) from None
    except (NotImplementedError, OSError):
        return None
    return lock
