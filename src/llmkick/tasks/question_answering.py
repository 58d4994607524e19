"""Shared parts of the short-answer tasks: the maximum answer length and the scoring in both protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmkick.models.language_model import Generation, Unanswered
from llmkick.tasks.metrics import (
    contains_alias,
    exact_match,
    first_line,
    holds_alias_anywhere,
    matches_either_way,
    token_f1,
)
from llmkick.tasks.task import Answer, Item, Record, unscored

MAX_NEW_TOKENS = 32


def score_answer(item: Item, answer: Answer) -> Record:
    """Score 1 if the first line contains an alias as whole words; the details also give exact match and F1.

    An empty answer is wrong; a failed request is unscored.
    """
    return _score(item, answer, contains_alias)


def score_anywhere(item: Item, answer: Answer) -> Record:
    """Protocol `paper` of FreebaseQA: score 1 if an alias is a substring of the whole output."""
    return _score(item, answer, holds_alias_anywhere, whole=True)


def score_either_way(item: Item, answer: Answer) -> Record:
    """Protocol `paper` of TriviaQA: score 1 if the alias or the first line is a substring of the other."""
    return _score(item, answer, matches_either_way)


def _score(item: Item, answer: Answer, right: Callable[[str, Sequence[str]], bool], *, whole: bool = False) -> Record:
    if isinstance(answer, Unanswered):
        return unscored(item, answer.reason)
    assert isinstance(answer, Generation), type(answer)
    line = first_line(answer.text)
    response = answer.text.strip() if whole else line
    return Record(
        item_id=item.id,
        cluster=item.cluster,
        response=response,
        score=float(right(response, item.references)),
        tokens=answer.tokens,
        truncated=answer.finish == "length",
        details={
            "exact_match": exact_match(line, item.references),
            "f1": round(token_f1(line, item.references), 6),
            **({} if right is contains_alias else {"whole_words": float(contains_alias(line, item.references))}),
            **item.details,
        },
    )
