"""Notes of a journal: what the run says about itself, so that an unfinished run can be read from its journal alone.

They stand in the table `meta`, one row a key. Four keys hold plain text, four hold JSON; version 0.1.0 wrote the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import JsonValue

# Schema of the tables, hash of the study, its resolved TOML, and the hash of a judging that came to its end.
TextNote = Literal["schema", "study_hash", "study", "judged"]
# Facts about the dense model, the tasks and the machine, and the digest of the dense weights.
JsonNote = Literal["model", "tasks", "environment", "dense_digest"]


@dataclass(frozen=True, kw_only=True)
class Notes:
    """All notes of a journal; None for a note that is absent, or whose JSON is damaged."""

    schema: str | None = None
    study_hash: str | None = None
    study: str | None = None
    judged: str | None = None
    model: JsonValue = None
    tasks: JsonValue = None
    environment: JsonValue = None
    dense_digest: JsonValue = None


def encoded_note(key: TextNote | JsonNote, value: object) -> str:
    """The text under which a note is kept. Raises TypeError for a value that JSON does not have."""
    if key in get_args(TextNote):
        assert isinstance(value, str), f"the note {key} is text, not {type(value).__name__}"
        return value
    return json.dumps(value, sort_keys=True)


def decoded_notes(rows: Mapping[str, str]) -> Notes:
    """The notes from the rows of the table `meta`; keys that this version does not know are passed over."""
    return Notes(
        schema=rows.get("schema"),
        study_hash=rows.get("study_hash"),
        study=rows.get("study"),
        judged=rows.get("judged"),
        model=_from_json(rows.get("model")),
        tasks=_from_json(rows.get("tasks")),
        environment=_from_json(rows.get("environment")),
        dense_digest=_from_json(rows.get("dense_digest")),
    )


def _from_json(text: str | None) -> JsonValue:
    if text is None:
        return None
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value
