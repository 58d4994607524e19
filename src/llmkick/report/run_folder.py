"""Reading and checking of a run folder, which may be complete, unfinished or damaged."""

from __future__ import annotations

import functools
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmkick.errors import DataError
from llmkick.study.frontier.result import FRONTIER_FILE
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import CellEntry, Journal
from llmkick.study.journal.recovery import recover_journal
from llmkick.study.results.from_journal import left_of_run, newest, partial_result
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run folder: its results, the items that were asked and, while it is open, every answer.

    `missing` lists what could not be read or was not run; it is empty for a complete run. `journal` is None if
    the folder has no journal.
    """

    result: StudyResult
    items: pd.DataFrame
    cells: Sequence[CellEntry]
    journal: Journal | None
    missing: Sequence[str] = ()

    @functools.cached_property
    def records(self) -> pd.DataFrame:
        """All records in one frame, for studies that fit into memory."""
        return _NO_RECORDS if self.journal is None else self.journal.records()


_NO_RECORDS = pd.DataFrame(columns=["model", "recipe", "seed", "task", "item_id", "score", "response", "details"])
_NO_ITEMS = pd.DataFrame(
    columns=["task", "position", "item_id", "cluster", "question", "context", "reference", "choices"]
)


@contextmanager
def opened_run(folder: Path) -> Iterator[Run]:
    """Read a run folder and keep its journal open.

    If the run is unfinished, or its results.json or journal is damaged, the readable part is returned, and `missing`
    lists the rest. Raises DataError when there is nothing to show, when the files are of another schema, or
    when they belong to different studies; the message says what to do.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the --out folder of a run")
    if not (folder / RESULTS_FILE).is_file() and not (folder / JOURNAL_FILE).is_file():
        raise DataError(f"{folder} holds neither {RESULTS_FILE} nor {JOURNAL_FILE}: it is not a run's folder")
    with tempfile.TemporaryDirectory() as spare:
        journal, cells, missing = _open_journal(folder, Path(spare))
        try:
            yield _read(folder, journal, cells, missing)
        finally:
            if journal is not None:
                journal.close()


def _open_journal(folder: Path, spare: Path) -> tuple[Journal | None, Sequence[CellEntry], list[str]]:
    """The journal and its cells; a copy of the readable part if the journal is damaged; None if there is no journal."""
    if not (folder / JOURNAL_FILE).is_file():
        return None, (), [f"there is no {JOURNAL_FILE}: no questions and answers"]
    with suppress(DataError, sqlite3.Error, ValueError, TypeError, KeyError):
        journal = Journal(folder, read_only=True)
        try:
            return journal, _sound_cells(journal), []
        except BaseException:
            journal.close()
            raise
    try:
        notes = recover_journal(folder, spare)
        journal = Journal(spare, read_only=True)
        return journal, newest(journal.cells()), notes
    except (DataError, sqlite3.Error) as error:
        if not (folder / RESULTS_FILE).is_file():
            raise DataError(f"{folder / JOURNAL_FILE} is damaged: {error}") from error
        return None, (), [f"{JOURNAL_FILE} is damaged and nothing of it can be read: {error}"]


def _sound_cells(journal: Journal) -> Sequence[CellEntry]:
    """The cells of an undamaged journal. Reads every database page and raises the first error."""
    cells = journal.cells()
    if any(cell.damaged for cell in cells):
        raise ValueError("records hold what no record can hold")
    _check_items(journal.items())
    journal.notes()
    return newest(cells)


def _read(folder: Path, journal: Journal | None, cells: Sequence[CellEntry], missing: list[str]) -> Run:
    result, more = _result(folder, journal, cells)
    missing += more
    if journal is None:
        return Run(result=result, items=_NO_ITEMS, cells=(), journal=None, missing=missing)
    if journal.notes().study_hash not in (None, result.study.hash):
        raise DataError(
            f"{folder}: {RESULTS_FILE} and {JOURNAL_FILE} belong to different studies; "
            "run the study's command again on this folder"
        )
    return Run(result=result, items=journal.items(), cells=cells, journal=journal, missing=missing)


def _result(folder: Path, journal: Journal | None, cells: Sequence[CellEntry]) -> tuple[StudyResult, list[str]]:
    """The results in results.json or, without it, computed from the journal; and a list of what is missing."""
    problem = ""
    if (folder / RESULTS_FILE).is_file():
        try:
            return read_results(folder), []
        except DataError as error:
            if journal is None or "has schema" in str(error):
                raise
            problem = f"{error}; the numbers are computed anew from the journal"
    assert journal is not None, folder
    result = partial_result(journal, folder)
    if not problem and (folder / FRONTIER_FILE).is_file():
        problem = "this is a search for the frontier, which asks only the levels that it needs"
    elif not problem:
        left = left_of_run(journal, folder, cells)
        problem = f"the run is not finished: {left}; to finish it, run `{_command(journal, folder)}`"
    return result, [problem, *result.warnings]


def _command(journal: Journal, folder: Path) -> str:
    """The command that goes on: a search or a gate has its own, since `kick run` would ask more, or other models."""
    began = [command for _, _, command in journal.commands()]
    if began and began[-1].startswith("kick ") and not began[-1].startswith("kick run "):
        last = began[-1]
        has_folder = {"--out", "-o"} & {word.partition("=")[0] for word in shlex.split(last)}
        return last if has_folder else shlex.join([*shlex.split(last), "--out", str(folder)])
    return shlex.join(["kick", "run", str(folder / "study.toml"), "--out", str(folder)])


def _check_items(items: pd.DataFrame) -> None:
    """Check that all items are text, because SQLite does not enforce column types. Raises TypeError otherwise."""
    for column in ("cluster", "question", "context"):
        if not items[column].map(lambda value: isinstance(value, str)).all():
            raise TypeError(f"{column} holds something that is no text")
    for column in ("reference", "choices"):
        if not items[column].map(lambda value: isinstance(value, list)).all():
            raise TypeError(f"{column} holds something that is no list")
