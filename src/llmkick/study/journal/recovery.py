"""Recovery of a damaged journal: copy its readable rows to a new journal."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llmkick.errors import DataError
from llmkick.study.journal.database import JOURNAL_FILE, open_to_read
from llmkick.study.journal.journal import Journal

# Rows per read. Around a damaged page the number is halved down to SMALLEST, so that few intact rows are lost.
CHUNK, SMALLEST = 4096, 8
# Maximum row number to try if the last row cannot be read.
MOST_ROWS = 1 << 26

Row = Sequence[object]
NamedRow = Mapping[str, object]


def recover_journal(folder: Path, target: Path) -> list[str]:
    """Copy every intact row of the journal in `folder` to a new journal in `target`; return notes on missing rows.

    Raises DataError if no record and no item can be read.
    """
    path = folder / JOURNAL_FILE
    journal = Journal(target)  # creates the tables
    journal.close()
    with contextlib.ExitStack() as cleanup:
        source = open_to_read(path, cleanup)
        source.text_factory = lambda raw: raw.decode("utf-8", errors="surrogateescape")
        copy = cleanup.enter_context(contextlib.closing(sqlite3.connect(target / JOURNAL_FILE)))
        lost: dict[str, str] = {}
        copied = {table: _copy_table(source, copy, table, lost) for table in _SOUND}
        copy.commit()
    if not (copied["records"] or copied["items"]):
        raise DataError(
            f"{path} is damaged and nothing of it can be read ({lost.get('records', 'no records')}); "
            "restore it from a copy, or start again in an empty folder"
        )
    notes = [f"{table}: {why}" for table, why in lost.items()]
    return [f"{JOURNAL_FILE} is damaged; what could be read is shown. Missing: {'; '.join(notes) or 'nothing found'}"]


def _copy_table(source: sqlite3.Connection, copy: sqlite3.Connection, table: str, lost: dict[str, str]) -> int:
    """Copy the intact rows of a table and return their number; write problems to `lost[table]`."""
    is_sound = _SOUND[table]
    columns = [row[1] for row in copy.execute(f"PRAGMA table_info({table})")]
    marks = ", ".join("?" for _ in columns)
    query = f"SELECT {', '.join(columns)} FROM {table} WHERE rowid BETWEEN ? AND ?"  # noqa: S608 (our own names)
    problems: list[str] = []
    damaged = sound = 0
    for row in _rows(source, query, _last_row(source, table, problems), problems):
        if not is_sound(dict(zip(columns, row, strict=True))):
            damaged += 1
            continue
        copy.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)  # noqa: S608
        sound += 1
    if damaged:
        problems.append(f"{damaged} damaged rows")
    if problems:
        lost[table] = ", ".join(dict.fromkeys(problems))
    return sound


def _last_row(source: sqlite3.Connection, table: str, problems: list[str]) -> int:
    try:
        return int(source.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0)  # noqa: S608
    except sqlite3.Error as error:
        if "no such table" in str(error) and table not in ("records", "items"):
            return 0  # a run without prompts or commands can be shown too
        problems.append(str(error))
        return _guessed_last_row(source, table)


def _guessed_last_row(source: sqlite3.Connection, table: str) -> int:
    """Return the largest readable row number, by a search with doubling steps."""
    last, step = 0, CHUNK
    while step < MOST_ROWS:
        try:
            largest = source.execute(
                f"SELECT max(rowid) FROM (SELECT rowid FROM {table} WHERE rowid <= ?)",  # noqa: S608
                (step,),
            ).fetchone()[0]
        except sqlite3.Error:
            return max(last, step if last else 0)
        if largest is None or largest < step // 2:
            return max(last, int(largest or 0))
        last, step = int(largest), step * 2
    return last


def _rows(source: sqlite3.Connection, query: str, last: int, problems: list[str]) -> Iterator[Row]:
    """Yield the rows 1 to `last`, except rows on unreadable pages; add the number of these to `problems`."""
    waiting = [(low, min(low + CHUNK - 1, last)) for low in range(1, last + 1, CHUNK)][::-1]
    unreadable = 0
    while waiting:
        low, high = waiting.pop()
        try:
            yield from source.execute(query, (low, high)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if high - low < SMALLEST:
                unreadable += high - low + 1
                if unreadable <= SMALLEST:
                    problems.append(str(error))
            else:
                middle = (low + high) // 2
                waiting += [(middle + 1, high), (low, middle)]
    if unreadable:
        problems.append(f"up to {unreadable} rows")


def _texts(*names: str) -> Callable[[NamedRow], bool]:
    return lambda row: all(isinstance(row[name], str) for name in names)


def _sound_item(row: NamedRow) -> bool:
    lists = all(isinstance(_decoded(row[name]), list) for name in ("reference", "choices"))
    return lists and _texts("task", "item_id", "cluster", "question", "context")(row)


def _sound_record(row: NamedRow) -> bool:
    score = row["score"] is None or isinstance(row["score"], int | float)
    counts = isinstance(row["tokens"], int) and isinstance(row["truncated"], int)
    texts = _texts("run_key", "model", "recipe", "task", "item_id", "cluster", "response")(row)
    return score and counts and texts and isinstance(_decoded(row["details"]), dict)


def _decoded(text: object) -> object:
    """Return the value of a JSON text, or None for any other value."""
    try:
        value: object = json.loads(text)  # type: ignore[arg-type]
        return value
    except (TypeError, ValueError):
        return None


_SOUND: dict[str, Callable[[NamedRow], bool]] = {
    "meta": _texts("key", "value"),
    "items": _sound_item,
    "records": _sound_record,
    "artifacts": lambda row: isinstance(_decoded(row["report"]), dict),
    "prompts": _texts("task", "item_id", "base", "middle"),
    "commands": _texts("started", "version", "command"),
}
