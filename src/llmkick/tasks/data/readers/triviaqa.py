"""The TriviaQA reader: trivia questions with aliases and evidence pages (hub layouts rc and rc.nocontext)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmkick.tasks.data.readers import Loaded, answerable, counted
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.data.tables import Row, read_table
from llmkick.tasks.task import Item

_COLUMNS = ("question", "question_id", "entity_pages", "search_results", "answer")
# The text of a page → its title.
Pages = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """A question with its pages; `place` is its first row. More pages than a context holds are left out."""

    id: str
    text: str
    references: tuple[str, ...]
    wikipedia: Pages
    web: Pages
    place: str

    @property
    def pages(self) -> Pages:
        """Every page once, those of Wikipedia first."""
        return _joined(self.wikipedia, self.web)

    def with_pages_of(self, other: _Question) -> _Question:
        """The question with the pages of another row too."""
        return replace(self, wikipedia=_joined(self.wikipedia, other.wikipedia), web=_joined(self.web, other.web))

    def item(self, evidence_characters: int) -> Item:
        """The question as an item, whose context is the beginning of its pages."""
        titles = iter(self.pages.values())
        return Item(
            id=self.id,
            cluster=next(titles, "") or self.id,
            question=self.text,
            references=self.references,
            context="\n\n".join(self.pages)[:evidence_characters],
        )


def read_triviaqa(origin: Origin, evidence_characters: int) -> Loaded:
    """The questions, with value and aliases as references and the evidence pages, Wikipedia first, as context.

    At most `evidence_characters` of the pages are kept, to limit memory; the later limit by tokens is far lower. The
    rc split lists a question twice if it has both web and Wikipedia evidence; it becomes one question with every page
    of both rows once. If any question has pages, questions without pages are left out and counted; so are questions
    that no answer can match. The cluster is the first page, which questions can share, or else the question itself.
    """
    by_id: dict[str, _Question] = {}
    joined = repeated = 0
    for file in origin.files(origin.chosen_split(("rc", "rc.nocontext")))[0]:
        for row in read_table(file.path, _COLUMNS, name=file.name):
            new = _question(row, evidence_characters)
            first = by_id.setdefault(new.id, new)
            if first is new:
                continue
            if (first.text, set(first.references)) != (new.text, set(new.references)):
                row.fail("question_id", f"{new.id!r} is the id of another question, {first.place}")
            if first.pages.keys() == new.pages.keys():
                repeated += 1
            else:
                joined += 1
                by_id[new.id] = first.with_pages_of(new)
    items = [question.item(evidence_characters) for question in by_id.values()]
    open_book = any(item.context for item in items)
    with_evidence = [item for item in items if item.context or not open_book]
    kept, unanswerable = answerable(with_evidence)
    return Loaded(
        items=kept,
        notes=(
            *counted(len(items) - len(with_evidence), "questions without evidence are left out"),
            *unanswerable,
            *counted(joined, "rows repeat a question with other pages; the pages are joined"),
            *counted(repeated, "rows repeat a question"),
        ),
    )


def _question(row: Row, most: int) -> _Question:
    """The question of a row, with as many pages as `most` characters of evidence can need."""
    answer = row.part("answer")
    wikipedia = _pages(row.part("entity_pages"), "wiki_context", most, room=most)
    room = most - sum(map(len, wikipedia))
    return _Question(
        id=row.text("question_id"),
        text=row.text("question"),
        references=tuple(dict.fromkeys((answer.text("value"), *answer.texts("aliases")))),
        wikipedia=wikipedia,
        web=_pages(row.part("search_results"), "search_context", most, room=room),
        place=f"{row.file}, row {row.number}",
    )


def _pages(part: Row, column: str, most: int, *, room: int) -> Pages:
    """The distinct non-empty pages, each cut to `most` characters, until they have at least `room` characters.

    Two pages with the same first `most` characters count as one: these fill the evidence.
    """
    texts, titles = part.as_list(column, part.get(column)), part.as_list("title", part.get("title"))
    if len(titles) != len(texts):
        part.fail("title", f"is a list of {len(titles)} beside {len(texts)} of {column}")
    pages: dict[str, str] = {}
    for text, title in zip(texts, titles, strict=True):
        page = part.as_text(column, text, blank=True).strip()[:most]
        named = part.as_text("title", title, blank=True) if page else ""
        if page and page not in pages and room > 0:
            pages[page] = named
            room -= len(page)
    return pages


def _joined(first: Pages, second: Pages) -> Pages:
    """The pages of both, those of `first` first."""
    return {**first, **{page: title for page, title in second.items() if page not in first}}
