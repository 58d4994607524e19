"""Measures of a generated text that need no judge: overlap with a reference, copying, repetition, diversity.

Words are lower-case sequences of letters and digits; an apostrophe can be inside a word, as in "don't".
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
# Lengths of the n-grams that measure copying from the source (trigrams) and repetition (4-grams).
TRIGRAM, FOURGRAM = 3, 4

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text.lower())


def rouge(text: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F-measure, with stemming) of a text against a reference, in [0, 1]; 0 if either is empty.

    Computed with `rouge-score`, which follows Lin 2004 (ROUGE-1.5.5).
    """
    scores = _scorer().score(reference, text)
    return {name: round(float(scores[name].fmeasure), 6) for name in ROUGE}


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


def copied_share(text: str, source: str) -> float | None:
    """The fraction of a text's word trigrams that occur in its source; None for fewer than three words."""
    trigrams = _ngrams(words_of(text), TRIGRAM)
    there = set(_ngrams(words_of(source), TRIGRAM))
    return sum(gram in there for gram in trigrams) / len(trigrams) if trigrams else None


def distinct_share(text: str, n: int) -> float | None:
    """Distinct-n (Li et al. 2016): distinct word n-grams divided by all word n-grams; None if there are none."""
    grams = _ngrams(words_of(text), n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str) -> float | None:
    """The fraction of word 4-grams that repeat an earlier one: near 1 for a loop; None for fewer than four words."""
    distinct = distinct_share(text, FOURGRAM)
    return None if distinct is None else 1 - distinct


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
