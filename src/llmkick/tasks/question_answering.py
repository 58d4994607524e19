"""What the short-answer tasks share: the length of an answer and how it is scored."""

from __future__ import annotations

from llmkick.models.language_model import Generation, Unanswered
from llmkick.tasks.metrics import contains_alias, exact_match, first_line, token_f1
from llmkick.tasks.task import Answer, Item, Record, unscored

MAX_NEW_TOKENS = 32


def score_answer(item: Item, answer: Answer) -> Record:
    """Score 1 when an alias stands in the first line as whole words; exact match and F1 beside it.

    An empty answer is a wrong answer; a request that failed is unscored.
    """
    if isinstance(answer, Unanswered):
        return unscored(item, answer.reason)
    assert isinstance(answer, Generation), type(answer)
    line = first_line(answer.text)
    return Record(
        item_id=item.id,
        cluster=item.cluster,
        response=line,
        score=float(contains_alias(line, item.references)),
        tokens=answer.tokens,
        truncated=answer.finish == "length",
        details={
            "exact_match": exact_match(line, item.references),
            "f1": round(token_f1(line, item.references), 6),
        },
    )
