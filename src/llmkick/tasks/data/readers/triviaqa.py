"""The TriviaQA reader: trivia questions with aliases and evidence pages (hub layouts rc and rc.nocontext)."""

from __future__ import annotations

from dataclasses import replace

from llmkick.tasks.data.readers import Loaded, counted
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_table
from llmkick.tasks.metrics import normalise
from llmkick.tasks.task import Item

_COLUMNS = ("question", "question_id", "entity_pages", "search_results", "answer")


def read_triviaqa(origin: Origin, evidence_characters: int) -> Loaded:
    """The questions, with value and aliases as references and the evidence pages, Wikipedia first, as context.

    At most `evidence_characters` of the pages are kept, to limit memory; the later limit by tokens is far lower. The
    rc split lists a question twice if it has both web and Wikipedia evidence; the pages of both rows are joined. If
    any question has pages, questions without pages are left out and counted; so are questions that no answer can
    match. The cluster is the first page, which questions can share, or else the question itself.
    """
    by_id: dict[str, tuple[Row, Item]] = {}
    twice = 0
    for file in origin.files(origin.chosen_split(("rc", "rc.nocontext")))[0]:
        for row in read_table(file.path, _COLUMNS, name=file.name):
            item = _item(row, evidence_characters)
            if item.id not in by_id:
                by_id[item.id] = row, item
                continue
            first, earlier = by_id[item.id]
            if (earlier.question, earlier.references) != (item.question, item.references):
                row.fail("question_id", f"{item.id!r} is the id of another question, {first.file}, row {first.number}")
            if item.context and item.context == earlier.context:
                row.fail("question_id", f"{item.id!r} is the id of {first.file}, row {first.number} too")
            twice += 1
            pages = "\n\n".join(context for context in (earlier.context, item.context) if context)
            cluster = earlier.cluster if earlier.context else item.cluster
            by_id[item.id] = first, replace(earlier, context=pages[:evidence_characters], cluster=cluster)
    items = [item for _, item in by_id.values()]
    open_book = any(item.context for item in items)
    without = [item for item in items if open_book and not item.context]
    nameless = [item for item in items if not any(map(normalise, item.references))]
    out = {item.id for item in (*without, *nameless)}
    return Loaded(
        items=tuple(item for item in items if item.id not in out),
        notes=(
            *counted(len(without), "questions without evidence are left out"),
            *counted(len(nameless), "questions whose answers are articles or punctuation only are left out"),
            *counted(twice, "rows repeat a question with other pages; the pages are joined"),
        ),
    )


def _item(row: Row, evidence_characters: int) -> Item:
    answer = row.part("answer")
    references = dict.fromkeys((answer.text("value"), *answer.texts("aliases")))
    pages, results = row.part("entity_pages"), row.part("search_results")
    contexts = [
        *((text, title) for text, title in _pages(pages, "wiki_context")),
        *((text, title) for text, title in _pages(results, "search_context")),
    ]
    identity = row.text("question_id")
    return Item(
        id=identity,
        cluster=(contexts[0][1] if contexts else "") or identity,
        question=row.text("question"),
        references=tuple(references),
        context="\n\n".join(text for text, _ in contexts)[:evidence_characters],
    )


def _pages(part: Row, column: str) -> list[tuple[str, str]]:
    """The distinct non-empty pages, with their titles."""
    texts, titles = part.as_list(column, part.get(column)), part.as_list("title", part.get("title"))
    if len(titles) != len(texts):
        part.fail("title", f"is a list of {len(titles)} beside {len(texts)} of {column}")
    pages: dict[str, str] = {}
    for text, title in zip(texts, titles, strict=True):
        if part.as_text(column, text, blank=True).strip():
            pages.setdefault(text.strip(), part.as_text("title", title, blank=True))
    return list(pages.items())
