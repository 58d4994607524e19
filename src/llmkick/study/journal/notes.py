"""Notes of a journal: metadata of the run that make an unfinished run readable from its journal alone.

The notes are in the table `meta`, with one row per key. Four keys hold plain text, the others hold JSON. The format is
the same as in version 0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import JsonValue

# Schema of the tables, hash of the study, its resolved TOML, and the hash of a complete judging.
TextNote = Literal["schema", "study_hash", "study", "judged"]
# Facts about the dense model, the tasks and the machine, the digest of the dense weights, and the versions of all
# sessions that asked something.
JsonNote = Literal["model", "tasks", "environment", "dense_digest", "answered_with"]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """All notes of a journal; None for a note that is absent or has damaged JSON."""

    schema: str | None = None
    study_hash: str | None = None
    study: str | None = None
    judged: str | None = None
    model: JsonValue = None
    tasks: JsonValue = None
    environment: JsonValue = None
    dense_digest: JsonValue = None
    answered_with: JsonValue = None


def encoded_note(key: TextNote | JsonNote, value: object) -> str:
    """Return the stored text of a note. Raises TypeError for a value that JSON cannot represent."""
    if key in get_args(TextNote):
        assert isinstance(value, str), f"the note {key} is text, not {type(value).__name__}"
        return value
    return json.dumps(value, sort_keys=True)


def decoded_notes(rows: Mapping[str, str]) -> Notes:
    """Return the notes from the rows of the table `meta`; ignore unknown keys."""
    return Notes(
        schema=rows.get("schema"),
        study_hash=rows.get("study_hash"),
        study=rows.get("study"),
        judged=rows.get("judged"),
        model=_from_json(rows.get("model")),
        tasks=_from_json(rows.get("tasks")),
        environment=_from_json(rows.get("environment")),
        dense_digest=_from_json(rows.get("dense_digest")),
        answered_with=_from_json(rows.get("answered_with")),
    )


def _from_json(text: str | None) -> JsonValue:
    if text is None:
        return None
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value


def difference(old: str, new: str) -> str:
    """Return the lines that differ between two study files, at most 20: old lines with -, new lines with +."""
    before, after = old.splitlines(), new.splitlines()
    lines = [f"  - {line}" for line in before if line not in after]
    lines += [f"  + {line}" for line in after if line not in before]
    return "\n".join(lines[:20])
