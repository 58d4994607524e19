"""Reader of reference answers for a judge, such as GPT-3.5's, from JSON lines in one of two layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmkick.errors import DataError
from llmkick.tasks.data.tables import Row, read_table, refuse_repeated_ids
from llmkick.tasks.task import Item

# Maximum number of items without an answer that an error message lists.
_SHOWN = 5


def read_reference_answers(path: Path, items: Sequence[Item]) -> dict[str, str]:
    """The answer to each item, by item id.

    Layouts: `{"id": ITEM, "answer": TEXT}`, or FastChat's `{"question_id": …, "choices": [{"turns": [TEXT, …]}]}`,
    in which turn 2 of question 81 is the item "81:2".
    Raises DataError for a damaged file, and for items without an answer, with their ids.
    """
    if not path.is_file():
        raise DataError(f"the file of reference answers {path} is not there")
    rows: list[tuple[Row, str]] = []
    answers: dict[str, str] = {}
    for row in read_table(path):
        identity, of_row = _answers_of(row)
        rows.append((row, identity))
        answers |= of_row
    refuse_repeated_ids(rows, "id")
    missing = [item.id for item in items if item.id not in answers]
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        there = ", ".join(list(answers)[:_SHOWN]) or "nothing"
        raise DataError(
            f"{path} has no answer to {len(missing)} of {len(items)} items ({named}); it answers {there}"
            + (", …" if len(answers) > _SHOWN else "")
        )
    return {item.id: answers[item.id] for item in items}


def _answers_of(row: Row) -> tuple[str, dict[str, str]]:
    if "choices" in row.values:
        identity = str(row.get("question_id"))
        choices = row.as_list("choices", row.get("choices"))
        if not choices:
            row.fail("choices", "is empty")
        turns = row.part("choices", choices[0]).texts("turns")
        return identity, {f"{identity}:{number}": text for number, text in enumerate(turns, start=1)}
    identity = str(row.get("id"))
    return identity, {identity: row.text("answer")}
