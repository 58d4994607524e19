"""The MT-Bench and Vicuna-80 reader: questions of one or two turns, some with reference answers."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.tasks.data.published import MT_BENCH
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_table, refuse_repeated_ids


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """The user's message of each turn, and the reference answers to the turns, if any."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


def read_dialogues(origin: Origin) -> list[Dialogue]:
    """The questions in FastChat's JSON lines, with GPT-4's reference answers if the folder has a file of them.

    Without this file, the references in the question file are used.
    """
    references = _references(origin)
    turns = 2 if origin.dataset is MT_BENCH else 1
    rows, dialogues = [], []
    for file in origin.files("questions")[0]:
        for row in read_table(file.path, ("question_id", "category", "turns"), name=file.name):
            identity = str(row.whole("question_id"))
            rows.append((row, identity))
            said = row.texts("turns", least=turns)
            # Some references answer only the first turn; the text for the second turn is then blank.
            given = tuple(
                row.as_text("reference", reference, blank=True)
                for reference in row.as_list("reference", row.values.get("reference") or [])
            )
            answer = references.get(identity, given)
            dialogues.append(Dialogue(id=identity, category=row.text("category"), turns=said, references=answer))
    refuse_repeated_ids(rows, "question_id")
    return dialogues


def _references(origin: Origin) -> dict[str, tuple[str, ...]]:
    if origin.source == "hub" or not origin.has("references"):
        return {}
    rows: list[tuple[Row, str]] = []
    dialogues = {}
    for file in origin.files("references")[0]:
        for row in read_table(file.path, ("question_id", "choices"), name=file.name):
            identity = str(row.whole("question_id"))
            rows.append((row, identity))
            choices = row.as_list("choices", row.get("choices"))
            if not choices:
                row.fail("choices", "is empty")
            dialogues[identity] = row.part("choices", choices[0]).texts("turns")
    refuse_repeated_ids(rows, "question_id")
    return dialogues
