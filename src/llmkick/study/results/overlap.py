"""Overlap between the text that models were calibrated or recovered on and the items that they are asked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmkick.study.results.records import OpenRecord
from llmkick.tasks.task import Item

# Words that must follow one another. 13, as for GPT-3 (arXiv:2005.14165), is longer than most short questions about
# facts; 8, as for PaLM (arXiv:2204.02311), is longer than the phrases that questions share with any text.
NGRAM = 8
SHOWN = 5  # items that a row names

# In Chinese and Japanese no spaces part the words: each sign counts as one.
_SIGN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SIGN}]|(?:(?![{_SIGN}])[^\W_])+")


class OverlapRow(OpenRecord):
    """How much of a task stands in the text that models were made with.

    exact: items whose whole question is in a window. ngram: items with 8 words of their question in a window, or all
    words of a shorter one; the exact ones are among them. answered: those with a reference answer in the same window:
    contamination. passages: items with 8 words of their passage or text in a window. `with_answer` counts the items
    that have a reference answer, `examples` names some items, the answered first.
    """

    task: str
    recipes: tuple[str, ...]  # the models made with the text
    source: str
    seed: int
    digest: str  # of the windows
    windows: int
    tokens: int
    n: int  # words of an n-gram
    items: int
    with_answer: int
    exact: int
    ngram: int
    answered: int
    passages: int
    examples: tuple[str, ...] = ()


def words_of_text(text: str) -> list[str]:
    """Return the words of a text, in order: lower-case runs of letters and digits, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class TextIndex:
    """Windows of text, for the search of word sequences."""

    windows: Sequence[Sequence[str]]
    joined: Sequence[str]  # the same, with a space around every word
    _places: dict[int, dict[str, list[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextIndex:
        """Return the index of the texts of windows."""
        windows = [words_of_text(text) for text in texts]
        return cls(windows, [f" {' '.join(words)} " for words in windows])

    def having(self, words: Sequence[str]) -> Sequence[int]:
        """Return the windows that contain a sequence of at most `NGRAM` words."""
        length = len(words)
        if length not in self._places:
            places: dict[str, list[int]] = {}
            for number, window in enumerate(self.windows):
                for run in {" ".join(window[start : start + length]) for start in range(len(window) - length + 1)}:
                    places.setdefault(run, []).append(number)
            self._places[length] = places
        return self._places[length].get(" ".join(words), ())

    def sharing(self, words: Sequence[str]) -> set[int]:
        """Return the windows that share an n-gram with a text; for a shorter text, those that contain it whole."""
        if len(words) <= NGRAM:
            return set(self.having(words)) if words else set()
        starts = range(len(words) - NGRAM + 1)
        return {number for start in starts for number in self.having(words[start : start + NGRAM])}

    def contains(self, number: int, words: Sequence[str]) -> bool:
        """Return whether a window contains a sequence of words of any length."""
        return f" {' '.join(words)} " in self.joined[number]


@dataclass(frozen=True, kw_only=True)
class ItemOverlap:
    """What of an item stands in a text."""

    exact: bool
    ngram: bool
    answered: bool
    passage: bool


def overlap_of_item(index: TextIndex, question: str, passage: str, references: Sequence[str]) -> ItemOverlap:
    """Return what of an item stands in a text: its question, an answer beside the question, and its passage."""
    asked = words_of_text(question)
    windows = index.sharing(asked)
    answers = [words for words in map(words_of_text, references) if words]
    return ItemOverlap(
        exact=any(index.contains(number, asked) for number in windows),
        ngram=bool(windows),
        answered=any(index.contains(number, answer) for number in windows for answer in answers),
        passage=bool(index.sharing(words_of_text(passage))),
    )


@dataclass(frozen=True, kw_only=True)
class MadeWith:
    """A text that models were made with: where it comes from, its windows as text, and the models."""

    recipes: tuple[str, ...]
    source: str
    seed: int
    digest: str
    tokens: int
    texts: Sequence[str]


def overlaps(
    texts: Sequence[MadeWith], items: Mapping[str, Sequence[Item]], decode: Callable[[Sequence[int]], str]
) -> list[OverlapRow]:
    """Return one row for each text and task; `decode` turns the tokens of a window into text."""
    rows = []
    for text in texts:
        index = TextIndex.of(text.texts)
        for task, of_task in items.items():
            found = {
                item.id: overlap_of_item(index, item.question, item.context or decode(item.tokens), item.references)
                for item in of_task
            }
            answered = [item for item, overlap in found.items() if overlap.answered]
            named = dict.fromkeys([*answered, *(item for item, overlap in found.items() if overlap.ngram)])
            rows.append(
                OverlapRow(
                    task=task,
                    recipes=text.recipes,
                    source=text.source,
                    seed=text.seed,
                    digest=text.digest,
                    windows=len(text.texts),
                    tokens=text.tokens,
                    n=NGRAM,
                    items=len(of_task),
                    with_answer=sum(any(map(words_of_text, item.references)) for item in of_task),
                    exact=sum(overlap.exact for overlap in found.values()),
                    ngram=sum(overlap.ngram for overlap in found.values()),
                    answered=len(answered),
                    passages=sum(overlap.passage for overlap in found.values()),
                    examples=tuple(list(named)[:SHOWN]),
                )
            )
    return rows


def overlap_warnings(rows: Sequence[OverlapRow]) -> list[str]:
    """Return a warning about each task that stands in a text with which a model was made."""
    warnings = []
    for task, source in dict.fromkeys((row.task, row.source) for row in rows):
        of_text = [row for row in rows if (row.task, row.source) == (task, source)]
        worst = max(of_text, key=lambda row: (row.answered, row.ngram))
        alike = [row for row in of_text if (row.answered if worst.answered else row.ngram)]
        models = ", ".join(dict.fromkeys(recipe for row in alike for recipe in row.recipes))
        if worst.answered:
            warnings.append(
                f"contamination: {worst.answered} of {worst.items} questions of {task} stand beside their answer in "
                f"the text ({source}) that made {models}"
            )
        elif worst.ngram:
            warnings.append(
                f"{worst.ngram} of {worst.items} questions of {task} stand in the text ({source}) that made {models}, "
                "without their answers"
            )
    return warnings
