"""Comparison of a text answer with its references: normalisation, whole words, exact match, token F1."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
# Characters that are not punctuation in Unicode, but that the comparison ignores like punctuation.
_SIGNS = frozenset(string.punctuation + "´°−")


def normalise(text: str) -> str:
    """The text in lower case, without punctuation, articles and extra spaces (as in TriviaQA's evaluation).

    Spaces replace the punctuation of any script, including typographic quotes and dashes. Between digits, a comma is
    removed (1,000 becomes 1000) and a decimal point stays (3.14). Accents are significant; Unicode NFC unifies their
    encodings.
    """
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text.lower()))
    return " ".join(".".join(map(_bare_words, _DECIMAL_POINT.split(text))).split())


def _bare_words(text: str) -> str:
    words = "".join(" " if c in _SIGNS or unicodedata.category(c).startswith("P") else c for c in text)
    return _ARTICLES.sub(" ", words)


def first_line(text: str) -> str:
    """The first non-blank line, stripped; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def contains_alias(answer: str, aliases: Sequence[str]) -> bool:
    """Whether the answer contains an alias as whole words, after normalisation of both."""
    padded = f" {normalise(answer)} "
    return any(f" {alias} " in padded for alias in map(normalise, aliases) if alias)


def exact_match(answer: str, aliases: Sequence[str]) -> float:
    """1 if the normalised answer equals a normalised alias, else 0."""
    return float(normalise(answer) in {normalise(alias) for alias in aliases} - {""})


def token_f1(answer: str, aliases: Sequence[str]) -> float:
    """The highest harmonic mean of word precision and recall over the aliases, in [0, 1]."""
    return max((_f1(normalise(answer).split(), normalise(alias).split()) for alias in aliases), default=0.0)


def _f1(answer: list[str], alias: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(alias)).values())
    if not shared:
        return 0.0
    return 2 * shared / (len(answer) + len(alias))


def squashed(text: str) -> str:
    """The text in lower case without white space, for the paper's metrics; punctuation, articles and accents stay."""
    return "".join(text.lower().split())


def holds_alias_anywhere(answer: str, aliases: Sequence[str]) -> bool:
    """The paper's FreebaseQA metric: an alias is a substring of the output, even inside a word or across words."""
    text = squashed(answer)
    return any(alias in text for alias in map(squashed, aliases) if alias)


def matches_either_way(answer: str, aliases: Sequence[str]) -> bool:
    """The paper's TriviaQA metric: an alias is a substring of the answer, or the answer is a substring of an alias.

    An empty answer matches nothing. The original code counts it as correct by mistake, because the empty string is a
    substring of every alias.
    """
    text = squashed(answer)
    return bool(text) and any(alias in text or text in alias for alias in map(squashed, aliases) if alias)
