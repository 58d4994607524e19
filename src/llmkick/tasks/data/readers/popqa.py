"""The PopQA reader: questions about popular and obscure subjects, with the popularity of each subject."""

from __future__ import annotations

import json
import re

from llmkick.tasks.data.readers import Loaded, answerable
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_table, refuse_repeated_ids
from llmkick.tasks.task import Item

# The templates of the questions. They give the relation if a file does not have the column `prop`.
_RELATIONS = {
    "occupation": r"What is .+'s occupation\?",
    "place of birth": r"In what city was .+ born\?",
    "genre": r"What genre is .+\?",
    "father": r"Who is the father of .+\?",
    "country": r"In what country is .+\?",
    "producer": r"Who was the producer of .+\?",
    "director": r"Who was the director of .+\?",
    "capital of": r"What is .+ the capital of\?",
    "screenwriter": r"Who was the screenwriter for .+\?",
    "composer": r"Who was the composer of .+\?",
    "color": r"What color is .+\?",
    "religion": r"What is the religion of .+\?",
    "sport": r"What sport does .+ play\?",
    "author": r"Who is the author of .+\?",
    "mother": r"Who is the mother of .+\?",
    "capital": r"What is the capital of .+\?",
}


def read_popqa(origin: Origin) -> Loaded:
    """The questions with their aliases, with the relation as cluster and the popularity in the details.

    `popularity` is the subject's page views per month (`s_pop`). The official table has the aliases as a JSON list in
    `possible_answers`; samples have them as a list in `answers`.
    """
    rows, items = [], []
    for file in origin.files(origin.chosen_split(("test",)))[0]:
        for row in read_table(file.path, ("question", "s_pop"), name=file.name):
            identity = str(row.get("id")) if "id" in row.values else f"popqa-{row.number:05d}"
            rows.append((row, identity))
            popularity = row.whole("s_pop")
            if popularity < 0:
                row.fail("s_pop", f"is {popularity}, which is no number of page views")
            question = row.text("question")
            items.append(
                Item(
                    id=identity,
                    cluster=row.text("prop") if "prop" in row.values else relation_of(question),
                    question=question,
                    references=_aliases(row),
                    details={"popularity": popularity},
                )
            )
    refuse_repeated_ids(rows, "id")
    kept, notes = answerable(items)
    return Loaded(items=kept, notes=notes)


def relation_of(question: str) -> str:
    """The relation in a question that follows a PopQA template; "other" for any other question."""
    return next((name for name, pattern in _RELATIONS.items() if re.fullmatch(pattern, question)), "other")


def _aliases(row: Row) -> tuple[str, ...]:
    if "possible_answers" not in row.values:
        return row.texts("answers")
    try:
        values = json.loads(row.text("possible_answers"))
    except ValueError as error:
        row.fail("possible_answers", f"is no JSON list ({error})")
    return row.as_texts("possible_answers", values)
