"""The CNN/DailyMail reader: news stories with the highlights that their editors wrote."""

from __future__ import annotations

from llmkick.tasks.data.readers import Loaded
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import read_table, refuse_repeated_ids
from llmkick.tasks.task import Item


def read_stories(origin: Origin) -> Loaded:
    """The stories, with the article as context and its highlights as the only reference, kept separate."""
    rows, items = [], []
    for file in origin.files(origin.chosen_split(("test", "validation")))[0]:
        for row in read_table(file.path, ("id", "article", "highlights"), name=file.name):
            rows.append((row, row.text("id")))
            items.append(
                Item(
                    id=row.text("id"),
                    cluster=row.text("id"),
                    question="",
                    context=row.text("article"),
                    references=(row.text("highlights"),),
                )
            )
    refuse_repeated_ids(rows, "id")
    return Loaded(items=tuple(items))
