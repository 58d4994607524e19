"""The records of a study in one Parquet file that is kept with the results: a run goes on from it on any machine.

Answers, questions and prompts are left out, because they hold text of the data sets. A record is found again by its run
key, a hash of the weights, the task with its data, and the settings; records of other inputs are never taken for ours.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal

COLUMNS = {
    "run_key": pa.string(), "model": pa.string(), "recipe": pa.string(), "seed": pa.int64(), "task": pa.string(),
    "item_id": pa.string(), "cluster": pa.string(), "score": pa.float64(), "unscored_reason": pa.string(),
    "tokens": pa.int64(), "truncated": pa.int64(), "details": pa.string(),
}  # fmt: skip
# Tables of the journal that go into the metadata of the file: compressions, and how long each stage took.
TABLES = {"artifacts": ("artifact_key", "digest", "report"), "seconds": ("stage", "detail", "seconds")}


def keep(folder: Path, file: Path) -> int:
    """Write the records of the run in `folder` to `file`; returns their number, 0 where nothing was begun."""
    if not (folder / JOURNAL_FILE).exists():
        return 0
    journal = Journal(folder, read_only=True)
    try:
        rows = journal.rows(f"SELECT {', '.join(COLUMNS)} FROM records ORDER BY rowid")
        tables = {
            name: journal.rows(f"SELECT {', '.join(columns)} FROM {name} ORDER BY rowid")
            for name, columns in TABLES.items()
        }
    finally:
        journal.close()
    tables["seconds"] = [(stage, detail.rpartition("/")[2], seconds) for stage, detail, seconds in tables["seconds"]]
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    schema = pa.schema(list(COLUMNS.items()), metadata={name: json.dumps(value) for name, value in tables.items()})
    arrays = [pa.array(values, kind) for values, kind in zip(columns, COLUMNS.values(), strict=True)]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    pq.write_table(pa.table(arrays, schema=schema), partial, compression="zstd", compression_level=19)
    partial.replace(file)
    return len(rows)


def restore(file: Path, folder: Path) -> int:
    """Begin the journal of `folder` with the records in `file`; returns their number, 0 where there is a journal."""
    if not file.is_file() or (folder / JOURNAL_FILE).exists():
        return 0
    table = pq.read_table(file)
    rows = table.select(list(COLUMNS)).to_pylist()
    metadata = table.schema.metadata or {}
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    try:
        with journal.transaction() as connection:
            names = [*COLUMNS, "response"]
            connection.executemany(_insert("records", names), [(*row.values(), "") for row in rows])
            for name, columns in TABLES.items():
                connection.executemany(_insert(name, columns), json.loads(metadata[name.encode()]))
    finally:
        journal.close()
    return len(rows)


def _insert(table: str, columns: list[str] | tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' for _ in columns)})"
