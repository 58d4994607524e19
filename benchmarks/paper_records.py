"""The records of a study in one file that is kept with the results, from which a run goes on on any machine.

The file is JSON compressed with xz: tables of the journal, each as a list of rows. Answers, questions and prompts are
left out, because they hold text of the data sets. A record is found again by its run key, a hash of the weights, the
task with its data, and the settings: records of other inputs are never taken for ours.
"""

import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal

SUFFIX = ".json.xz"
TABLES: dict[str, tuple[str, ...]] = {
    "records": (
        "run_key", "model", "recipe", "seed", "task", "item_id", "cluster", "score", "unscored_reason", "tokens",
        "truncated", "details",
    ),
    "artifacts": ("artifact_key", "digest", "report"),
    "seconds": ("stage", "detail", "seconds"),
}  # fmt: skip


def keep(folder: Path, file: Path) -> int:
    """Write the records of the run in `folder` to `file`; returns their number, 0 where nothing was begun."""
    if not (folder / JOURNAL_FILE).exists():
        return 0
    journal = Journal(folder, read_only=True)
    try:
        tables = {
            name: journal.rows(f"SELECT {', '.join(columns)} FROM {name} ORDER BY rowid")
            for name, columns in TABLES.items()
        }
    finally:
        journal.close()
    tables["artifacts"] = [(key, digest, _without_folder(report)) for key, digest, report in tables["artifacts"]]
    tables["seconds"] = [(stage, _name_of(detail), seconds) for stage, detail, seconds in tables["seconds"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(lzma.compress(json.dumps(tables, ensure_ascii=False).encode()))
    partial.replace(file)
    return len(tables["records"])


def restore(file: Path, folder: Path) -> int:
    """Add the records in `file` to the journal of `folder`, which may be there already; returns how many were new.

    Ends the program if the file is damaged.
    """
    if not file.is_file():
        return 0
    try:
        tables = json.loads(lzma.decompress(file.read_bytes()))
        records = [(*row, "") for row in tables["records"]]
    except (lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        sys.exit(f"{file} cannot be read: {error}; restore it with git, or delete it to ask everything again")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    try:
        (before,) = journal.rows("SELECT count(*) FROM records")[0]
        with journal.transaction() as connection:
            connection.executemany(_insert("records", (*TABLES["records"], "response")), records)
            connection.executemany(_insert("artifacts", TABLES["artifacts"]), tables["artifacts"])
            if not before:  # the times of a journal that goes on are in it
                connection.executemany(_insert("seconds", TABLES["seconds"]), tables["seconds"])
        (after,) = journal.rows("SELECT count(*) FROM records")[0]
    finally:
        journal.close()
    return int(after - before)


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' for _ in columns)})"


def _without_folder(report: str) -> str:
    """The report of a compression, without where on this machine its calibration text is."""
    values = json.loads(report)
    if values.get("calibration_source"):
        values["calibration_source"] = _name_of(values["calibration_source"])
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def _name_of(path: str) -> str:
    return path.rpartition("/")[2]
