"""The journal of a study: one SQLite file that stores every record at once and survives `kill -9`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar, overload

import numpy as np
import pandas as pd
from pydantic import BaseModel

from llmkick.errors import ConfigError
from llmkick.study.journal.database import JOURNAL_SCHEMA, JournalFile
from llmkick.study.journal.notes import JsonNote, Notes, TextNote, decoded_notes, difference, encoded_note
from llmkick.study.journal.prompts import PromptPart
from llmkick.tasks.task import Item, Record

if TYPE_CHECKING:
    from llmkick.compression.walk.calibration import Calibration

# The record type of a stored entry, which its reader names: the journal stores, and does not interpret.
Entry = TypeVar("Entry", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The unchanged reply of a judge, and its question.

    `judgement_key` is a hash of the whole question: judge, prompt, both texts in their order, replicate. `first` and
    `second` are the SHA-256 of the first and of the second text in the prompt.
    """

    judgement_key: str
    judge: str
    prompt: str
    task: str
    item_id: str
    first: str
    second: str
    replicate: int
    reply: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


_JUDGEMENT_COLUMNS = [column.name for column in fields(Judgement)]


class CellEntry(NamedTuple):
    """A cell with records: the number of records and the number of damaged records."""

    run_key: str
    model: str
    recipe: str
    seed: int | None
    task: str
    records: int
    damaged: int


class Journal(JournalFile):
    """The open journal of a run folder. Every method commits before it returns and is thread-safe.

    Every method raises DataError if the file is damaged or cannot be written.
    """

    def claim(self, study_hash: str, description: str) -> None:
        """Bind the folder to a study. Raises ConfigError if the folder holds records of another study.

        A folder without records is free, for example after a study with a mistyped model name.
        """
        notes = self.notes()
        if notes.schema not in (None, str(JOURNAL_SCHEMA)):
            raise ConfigError(f"the journal has schema {notes.schema}; this version reads {JOURNAL_SCHEMA}")
        if notes.study_hash not in (None, study_hash) and self.rows("SELECT 1 FROM records LIMIT 1"):
            raise ConfigError(
                "the folder holds the results of another study:\n"
                f"{difference(notes.study or '', description)}\n"
                "Give another --out, or remove that folder."
            )
        with self.transaction() as connection:
            values = {"schema": str(JOURNAL_SCHEMA), "study_hash": study_hash, "study": description}
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def notes(self) -> Notes:
        """Return the notes of the run."""
        return decoded_notes(dict(self.rows("SELECT key, value FROM meta")))

    @overload
    def note(self, key: TextNote, value: str) -> None: ...
    @overload
    def note(self, key: JsonNote, value: object) -> None: ...
    def note(self, key: TextNote | JsonNote, value: object) -> None:
        """Write a note and replace the earlier note. Raises TypeError for a value that JSON cannot represent."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, encoded_note(key, value)))

    def add_items(self, task: str, items: Sequence[Item]) -> None:
        """Write the items of a task and replace earlier items, so that a report needs only the journal."""
        rows = [
            (
                task, position, item.id, item.cluster, item.question, item.context,
                json.dumps(item.references, ensure_ascii=False), json.dumps(item.choices, ensure_ascii=False),
            )
            for position, item in enumerate(items)
        ]  # fmt: skip
        with self.transaction() as connection:
            connection.execute("DELETE FROM items WHERE task = ?", (task,))
            connection.executemany("INSERT INTO items VALUES (?,?,?,?,?,?,?,?)", rows)

    def add_prompts(self, task: str, prompts: Sequence[PromptPart]) -> None:
        """Write the prompts of a task in the format of `packed_prompts` and replace earlier prompts."""
        rows = [(task, part.item_id, part.base, part.head, part.tail, part.middle) for part in prompts]
        with self.transaction() as connection:
            connection.execute("DELETE FROM prompts WHERE task = ?", (task,))
            connection.executemany("INSERT INTO prompts VALUES (?,?,?,?,?,?)", rows)

    def prompts(self, task: str) -> list[PromptPart]:
        """Return the packed prompts of a task, or an empty list if the journal has no table of prompts."""
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'prompts'"):
            return []
        rows = self.rows("SELECT item_id, base, head, tail, middle FROM prompts WHERE task = ?", (task,))
        return [PromptPart(*row) for row in rows]

    def add_command(self, started: str, version: str, command: str) -> None:
        """Write a command that used this folder: ISO start time, version of this package, and command line."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO commands VALUES (?,?,?)", (started, version, command))

    def commands(self) -> list[tuple[str, str, str]]:
        """Return (start, version, command) of every command in order, or an empty list without a table of commands."""
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'commands'"):
            return []
        return [tuple(row) for row in self.rows("SELECT started, version, command FROM commands ORDER BY rowid")]

    def add_records(
        self, run_key: str, *, model: str, recipe: str, seed: int | None, task: str, records: Sequence[Record]
    ) -> None:
        """Write a batch of records in one transaction."""
        rows = [
            (
                run_key, model, recipe, seed, task, record.item_id, record.cluster, record.response, record.score,
                record.unscored_reason, record.tokens, int(record.truncated),
                json.dumps(dict(record.details), ensure_ascii=False, sort_keys=True),
            )
            for record in records
        ]  # fmt: skip
        with self.transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)

    def done(self, run_key: str) -> set[str]:
        """Return the ids of the items with a record under a run key."""
        return {item_id for (item_id,) in self.rows("SELECT item_id FROM records WHERE run_key = ?", (run_key,))}

    def scores(self, run_key: str) -> dict[str, float | None]:
        """Return item id → score under a run key; the score is None for an unscored item."""
        return dict(self.rows("SELECT item_id, score FROM records WHERE run_key = ?", (run_key,)))

    def responses(self, run_key: str) -> dict[str, tuple[str, str | None]]:
        """Return item id → (response, reason for a missing score or None) under a run key."""
        query = "SELECT item_id, response, unscored_reason FROM records WHERE run_key = ?"
        return {item_id: (response, reason) for item_id, response, reason in self.rows(query, (run_key,))}

    def add_judgement(self, judgement: Judgement) -> None:
        """Write a judgement as soon as it arrives, because a judgement may cost money."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO judgements VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                [int(value) if isinstance(value, bool) else value for value in vars(judgement).values()],
            )

    def judgements(self) -> dict[str, Judgement]:
        """Return all judgements by key."""
        rows = self.rows("SELECT * FROM judgements")
        judgements = [Judgement(**dict(zip(_JUDGEMENT_COLUMNS, row, strict=True))) for row in rows]
        return {judgement.judgement_key: replace(judgement, cut=bool(judgement.cut)) for judgement in judgements}

    def run_keys(self) -> set[str]:
        """Return all run keys with records."""
        return {run_key for (run_key,) in self.rows("SELECT DISTINCT run_key FROM records")}

    def forget(self, run_keys: Collection[str]) -> None:
        """Delete the records under these run keys, e.g. if a compressed model cannot be reproduced bit for bit."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM records WHERE run_key = ?", [(key,) for key in run_keys])

    def digest(self, key: str) -> str | None:
        """Return the digest of a model's weights, or None for an unknown key."""
        rows = self.rows("SELECT digest FROM artifacts WHERE artifact_key = ?", (key,))
        return rows[0][0] if rows else None

    def artifact(self, key: str, kind: type[Entry]) -> Entry | None:
        """Return the compression report or the description of a model, or None for an unknown key."""
        rows = self.rows("SELECT report FROM artifacts WHERE artifact_key = ?", (key,))
        return kind.model_validate(json.loads(rows[0][0])) if rows else None

    def artifacts(self, kind: type[Entry]) -> list[Entry]:
        """Return the reports and descriptions of all models, in the order in which they were made."""
        rows = self.rows("SELECT report FROM artifacts ORDER BY rowid")
        return [kind.model_validate(json.loads(report)) for (report,) in rows]

    def add_artifact(self, key: str, digest: str, artifact: BaseModel) -> None:
        """Write the digest of a model's weights, and its compression report or description."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO artifacts VALUES (?,?,?)", (key, digest, _as_json(artifact)))

    def noise(self, run_key: str, kind: type[Entry]) -> Entry | None:
        """Return the noise floor of a cell, or None if it was not measured."""
        rows = self.rows("SELECT found FROM noise WHERE run_key = ?", (run_key,))
        return kind.model_validate(json.loads(rows[0][0])) if rows else None

    def add_noise(self, run_key: str, noise_floor: BaseModel) -> None:
        """Write the noise floor of a cell."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO noise VALUES (?,?)", (run_key, _as_json(noise_floor)))

    def calibration(self, key: str) -> Calibration | None:
        """Return the calibration windows under a key, or None for an unknown key."""
        query = "SELECT source, seed, sequences, length, tokens FROM calibrations WHERE calibration_key = ?"
        if not (rows := self.rows(query, (key,))):
            return None
        from llmkick.compression.walk.calibration import Calibration  # it imports torch; a report needs neither

        source, seed, sequences, length, blob = rows[0]
        tokens = np.frombuffer(blob, dtype="<i4").astype(np.int64).reshape(sequences, length)
        return Calibration(tokens=tokens, source=source, seed=seed)

    def add_calibration(self, key: str, calibration: Calibration) -> None:
        """Write the calibration windows with their tokens; a resumed run must not depend on a cache or a hub."""
        sequences, length = calibration.tokens.shape
        row = (
            key, calibration.digest, calibration.source, calibration.seed, sequences, length,
            calibration.tokens.astype("<i4").tobytes(),
        )  # fmt: skip
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO calibrations VALUES (?,?,?,?,?,?,?)", row)

    def add_seconds(self, stage: str, detail: str, seconds: float) -> None:
        """Write the wall time of a stage in seconds."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO seconds VALUES (?,?,?)", (stage, detail, seconds))

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return stage → detail → wall time in seconds, summed over all commands of the run."""
        total: dict[str, dict[str, float]] = {}
        for stage, detail, value in self.rows("SELECT stage, detail, seconds FROM seconds"):
            total.setdefault(stage, {})[detail] = total.get(stage, {}).get(detail, 0.0) + value
        return total

    def records(self) -> pd.DataFrame:
        """Return all records, ordered by task, recipe, seed and item position, with decoded `details`."""
        query = (
            "SELECT records.*, items.position FROM records "
            "LEFT JOIN items ON items.task = records.task AND items.item_id = records.item_id "
            "ORDER BY records.task, recipe, seed, position, records.item_id"
        )
        with self.reading():
            frame = pd.read_sql_query(query, self.connection)
            frame["details"] = frame["details"].map(json.loads)
            frame["truncated"] = frame["truncated"].astype(bool)
        return frame

    def cells(self) -> list[CellEntry]:
        """Return all cells with records, in the order of their last record."""
        query = (
            "SELECT run_key, model, recipe, seed, task, count(*), "
            "sum(typeof(response) != 'text' OR typeof(item_id) != 'text' OR NOT json_valid(details) "
            "OR typeof(score) NOT IN ('null', 'real', 'integer')) "
            "FROM records GROUP BY run_key, model, recipe, seed, task ORDER BY max(rowid)"
        )
        return [CellEntry(*row) for row in self.rows(query)]

    def answers(self, run_key: str) -> list[tuple[str, str, float | None, str | None, int]]:
        """Return (item id, response, score, reason for a missing score, truncated) of every record of a cell."""
        return self.rows(
            "SELECT item_id, response, score, unscored_reason, truncated FROM records WHERE run_key = ?", (run_key,)
        )

    def cell_records(self, run_key: str) -> pd.DataFrame:
        """Return the records of one cell with all columns and decoded `details`."""
        with self.reading():
            frame = pd.read_sql_query("SELECT * FROM records WHERE run_key = ?", self.connection, params=(run_key,))
            frame["details"] = frame["details"].map(json.loads)
            frame["truncated"] = frame["truncated"].astype(bool)
        return frame

    def items(self) -> pd.DataFrame:
        """Return all items, ordered by task and position, with `reference` and `choices` decoded to lists."""
        with self.reading():
            frame = pd.read_sql_query("SELECT * FROM items ORDER BY task, position", self.connection)
            for column in ("reference", "choices"):
                frame[column] = frame[column].map(json.loads)
        return frame


def _as_json(entry: BaseModel) -> str:
    return json.dumps(entry.model_dump(mode="json"), sort_keys=True)
