"""What a generated text is like, with no judge at hand: overlap with another text, copying, repetition, variety.

Words are runs of letters and digits in lower case, an apostrophe inside one included: "don't" is a word.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
# The share of a text's trigrams that must be found in the source to speak of copying; and of its 4-grams that must be
# repeats to speak of a loop.
TRIGRAM, FOURGRAM = 3, 4

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text.lower())


def rouge(text: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F, with stemming) of a text against a reference: each in [0, 1]; 0 where either is empty.

    By `rouge-score`, which follows Lin 2004 (ROUGE-1.5.5).
    """
    scores = _scorer().score(reference, text)
    return {name: round(float(scores[name].fmeasure), 6) for name in ROUGE}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


def copied_share(text: str, source: str) -> float | None:
    """The share of a text's word trigrams that are in its source; None for a text of fewer than three words."""
    own = _ngrams(words_of(text), TRIGRAM)
    there = set(_ngrams(words_of(source), TRIGRAM))
    return sum(gram in there for gram in own) / len(own) if own else None


def distinct_share(text: str, n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different word n-grams over all of them; None for a text that has none."""
    grams = _ngrams(words_of(text), n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str) -> float | None:
    """The share of a text's word 4-grams that stood in it before: near 1 for a loop; None under four words."""
    distinct = distinct_share(text, FOURGRAM)
    return None if distinct is None else 1 - distinct


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
