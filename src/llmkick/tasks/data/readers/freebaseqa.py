"""The FreebaseQA reader: one JSON document of questions with their parses and answers."""

from __future__ import annotations

from llmkick.errors import DataError
from llmkick.tasks.data.readers import Loaded, answerable, counted
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_json, refuse_repeated_ids
from llmkick.tasks.task import Item


def read_freebaseqa(origin: Origin) -> Loaded:
    """The raw questions, with the answer names of all parses as aliases and the Freebase domain as cluster.

    Null names (entities without an English name) are not aliases. A question with only null names cannot be scored;
    it is left out, as one whose names are articles or punctuation only, and the notes give the numbers of both.
    """
    rows, items, nameless = [], [], 0
    for file in origin.files(origin.chosen_split(("eval", "dev")))[0]:
        document = read_json(file.path, file.name)
        if not isinstance(document, dict) or not isinstance(document.get("Questions"), list):
            raise DataError(f"{file.name}, column 'Questions': is missing or no list; is it FreebaseQA's JSON release?")
        for number, values in enumerate(document["Questions"], start=1):
            if not isinstance(values, dict):
                raise DataError(f"{file.name}, row {number}: is not an object")
            row = Row(file.name, number, values)
            rows.append((row, row.text("Question-ID")))
            aliases, chain = _answers(row)
            if not aliases:
                nameless += 1
                continue
            items.append(
                Item(
                    id=row.text("Question-ID"),
                    cluster=chain.partition(".")[0],
                    question=row.text("RawQuestion").strip(),
                    references=aliases,
                )
            )
    refuse_repeated_ids(rows, "Question-ID")
    kept, notes = answerable(items)
    return Loaded(items=kept, notes=(*counted(nameless, "questions whose answers have no name are left out"), *notes))


def _answers(row: Row) -> tuple[tuple[str, ...], str]:
    """The distinct aliases of all parses, in order, and the inferential chain of the first parse."""
    aliases: dict[str, None] = {}
    chain = ""
    parses = row.as_list("Parses", row.get("Parses"))
    if not parses:
        row.fail("Parses", "is empty")
    for values in parses:
        parse = row.part("Parses", values)
        chain = chain or parse.text("InferentialChain")
        answers = parse.as_list("Answers", parse.get("Answers"))
        if not answers:
            parse.fail("Answers", "is empty")
        for entry in answers:
            answer = parse.part("Answers", entry)
            names = answer.as_list("AnswersName", answer.get("AnswersName"))
            if not names:
                answer.fail("AnswersName", "is empty")
            aliases |= {answer.as_text("AnswersName", name): None for name in names if name is not None}
    return tuple(aliases), chain
