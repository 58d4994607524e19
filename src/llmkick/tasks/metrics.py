"""How a text answer is held against its references: normalisation, whole words, exact match, token F1."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")
# Signs that Unicode does not class as punctuation, but that a reader skips like it.
_SIGNS = frozenset(string.punctuation + "´°−")


def normalise(text: str) -> str:
    """Lower case, punctuation as spaces, articles and surplus spaces removed (as TriviaQA's evaluation).

    Punctuation is that of any script: typographic quotes and dashes too. A comma or point between digits
    belongs to the number and is dropped or kept: 1,000 = 1000, 3.14 stays. Accents count, however a letter
    and its accent are stored (Unicode NFC).
    """
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text.lower()))
    return " ".join(".".join(map(_bare_words, _DECIMAL_POINT.split(text))).split())


def _bare_words(text: str) -> str:
    words = "".join(" " if c in _SIGNS or unicodedata.category(c).startswith("P") else c for c in text)
    return _ARTICLES.sub(" ", words)


def first_line(text: str) -> str:
    """The first line that is not blank, stripped; empty when there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def contains_alias(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an alias stands in the answer as whole words, both normalised."""
    padded = f" {normalise(answer)} "
    return any(f" {alias} " in padded for alias in map(normalise, aliases) if alias)


def exact_match(answer: str, aliases: Sequence[str]) -> float:
    """1 when the normalised answer equals a normalised alias."""
    return float(normalise(answer) in {normalise(alias) for alias in aliases} - {""})


def token_f1(answer: str, aliases: Sequence[str]) -> float:
    """Best harmonic mean of word precision and recall over the aliases, in [0, 1]."""
    return max((_f1(normalise(answer).split(), normalise(alias).split()) for alias in aliases), default=0.0)


def _f1(answer: list[str], alias: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(alias)).values())
    if not shared:
        return 0.0
    return 2 * shared / (len(answer) + len(alias))


def squashed(text: str) -> str:
    """Lower case without white space: what the paper's metrics compare. Punctuation, articles and accents stay."""
    return "".join(text.lower().split())


def holds_alias_anywhere(answer: str, aliases: Sequence[str]) -> bool:
    """The paper's FreebaseQA metric: an alias is a substring of the output, inside a word or across words too."""
    text = squashed(answer)
    return any(alias in text for alias in map(squashed, aliases) if alias)


def matches_either_way(answer: str, aliases: Sequence[str]) -> bool:
    """The paper's TriviaQA metric: an alias is a substring of the answer, or the answer one of an alias.

    An empty answer, a substring of everything, matches nothing: that was a mistake of the original code.
    """
    text = squashed(answer)
    return bool(text) and any(alias in text or text in alias for alias in map(squashed, aliases) if alias)
