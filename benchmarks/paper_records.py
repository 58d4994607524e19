"""The records of a study in one file that is kept with the results, from which a run goes on on any machine.

The file is JSON compressed with xz: tables of the journal, each as a list of rows. Answers, questions and prompts are
left out, because they hold text of the data sets; of a choice its letter is kept. A record is found again by its run
key, a hash of the dense weights, the recipe, the task with its data, and the settings: records of other inputs are
never taken for ours. Of compressed weights that came out otherwise here, nothing is restored.
"""

import json
import lzma
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkick.study.cells import variants_of
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.results.multiplicity import chosen_option
from llmkick.study.spec.study import Study
from llmkick.tasks.task import ReadByReference

SUFFIX = ".json.xz"
TABLES: dict[str, tuple[str, ...]] = {
    "records": (
        "run_key", "model", "recipe", "seed", "task", "item_id", "cluster", "score", "unscored_reason", "tokens",
        "truncated", "details", "response",
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
    tables["records"] = [_with_its_letter(row) for row in tables["records"]]
    tables["artifacts"] = [(key, digest, _without_folder(report)) for key, digest, report in tables["artifacts"]]
    tables["seconds"] = [(stage, _name_of(detail), seconds) for stage, detail, seconds in tables["seconds"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(lzma.compress(json.dumps(tables, ensure_ascii=False).encode()))
    partial.replace(file)
    return len(tables["records"])


def restore(file: Path, folder: Path, study: Study) -> int:
    """Add the records in `file` to the journal of `folder`, which may be there already; returns how many were new.

    The dense model's answers to a task that reads those of the others beside them are asked again if some are still to
    come. Ends the program if the file is damaged.
    """
    if not file.is_file():
        return 0
    try:
        tables = json.loads(lzma.decompress(file.read_bytes()))
        records = [_with_its_letter(row) for row in tables["records"]]
    except (lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        sys.exit(f"{file} cannot be read: {error}; restore it with git, or delete it to ask everything again")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    try:
        (before,) = journal.rows("SELECT count(*) FROM records")[0]
        digests = dict(journal.rows("SELECT artifact_key, digest FROM artifacts"))
        others = {
            _weights_of(report) for key, digest, report in tables["artifacts"] if digests.get(key, digest) != digest
        }
        lacking = _answers_lacking(records, study)
        records = [
            row
            for row in records
            if (_value(row, "recipe"), _value(row, "seed")) not in others
            and not (_value(row, "recipe") == "dense" and _value(row, "task") in lacking)
        ]
        with journal.transaction() as connection:
            connection.executemany(_insert("records", TABLES["records"]), records)
            connection.executemany(
                "UPDATE records SET response = ? WHERE run_key = ? AND item_id = ? AND response = ''",
                [[_value(row, name) for name in ("response", "run_key", "item_id")] for row in records],
            )
            connection.executemany(_insert("artifacts", TABLES["artifacts"]), tables["artifacts"])
            if not before:  # the times of a journal that goes on are in it
                connection.executemany(_insert("seconds", TABLES["seconds"]), tables["seconds"])
        (after,) = journal.rows("SELECT count(*) FROM records")[0]
    finally:
        journal.close()
    return int(after - before)


def _value(row: Sequence[Any], column: str) -> Any:
    return row[TABLES["records"].index(column)]


def _with_its_letter(row: Sequence[Any]) -> list[Any]:
    """A record with the letter of its choice in place of its answer; other answers are left out.

    Files were written without it, too: there the letter is that of the likeliest option.
    """
    columns = TABLES["records"]
    values: dict[str, Any] = dict(zip(columns, [*row, ""][: len(columns)], strict=True))
    likely: Sequence[float] = json.loads(values["details"]).get("choice_logprobs", [])
    if not likely:
        values["response"] = ""
    elif values["response"]:
        values["response"] = chosen_option(values["response"])
    elif values["task"].startswith("multiple_choice:letter") and likely.count(max(likely)) == 1:
        values["response"] = f"{chr(ord('A') + likely.index(max(likely)))}."
    return list(values.values())


def _weights_of(report: str) -> tuple[str, int | None]:
    """The recipe and the calibration seed that the report of a compression is of."""
    values: Mapping[str, Any] = json.loads(report)
    return values["recipe"], values["seed"]


def _answers_lacking(records: Sequence[Sequence[Any]], study: Study) -> set[str]:
    """The tasks that are read beside the dense model's answers, and that some model has not answered to the end."""
    answered = Counter((_value(row, "task"), _value(row, "recipe")) for row in records)
    labels = [variant.label for variant in variants_of(study)]
    beside = [task.name for task in (spec.make() for spec in study.task_specs()) if isinstance(task, ReadByReference)]
    return {task for task in beside if min(answered[task, label] for label in labels) < answered[task, "dense"]}


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
