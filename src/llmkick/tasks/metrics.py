"""Comparison of a text answer with its references: normalisation, whole words, exact match, token F1."""

from __future__ import annotations

import itertools
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
# What may stand before an article without a space.
_OPENING = "\"'“”‘’„«»(["
# What stands before the first word of a sentence.
_BEGINS = re.compile(r"(?:^|[.!?])[\s\"'“”‘’„«»(\[*_]*$")
# Without its article, an alias of nothing but these words would be in most sentences.
_FUNCTION_WORDS = frozenset({
    "a", "an", "the", "i", "me", "my", "you", "your", "he", "him", "his", "she", "her", "it", "its", "we", "us",
    "our", "they", "them", "their", "this", "that", "these", "those", "who", "whom", "whose", "what", "which", "when",
    "where", "why", "how", "there", "here", "and", "or", "but", "nor", "so", "yet", "if", "than", "then", "as", "of",
    "in", "on", "at", "by", "for", "to", "from", "with", "into", "up", "out", "off", "over", "under", "about",
    "after", "before", "between", "through", "am", "is", "are", "was", "were", "be", "been", "being", "do", "does",
    "did", "has", "have", "had", "will", "would", "can", "could", "shall", "should", "may", "might", "must", "no",
    "not", "yes", "all", "any", "some", "one",
})  # fmt: skip


def normalise(text: str) -> str:
    """The text in lower case, without punctuation, articles and extra spaces (as in TriviaQA's evaluation).

    Spaces replace the punctuation of any script, including typographic quotes and dashes. Between digits, a comma is
    removed (1,000 becomes 1000) and a decimal point stays (3.14). Accents are significant; Unicode NFC unifies their
    encodings.
    """
    return " ".join(_ARTICLES.sub(" ", _words(text)).split())


def _words(text: str) -> str:
    """The text as in `normalise`, with its articles."""
    return _cased_words(text.lower())


def _cased_words(text: str) -> str:
    """The text as in `normalise`, with its articles and capitals."""
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text))
    return " ".join(".".join(map(_without_punctuation, _DECIMAL_POINT.split(text))).split())


def _without_punctuation(text: str) -> str:
    return "".join(" " if c in _SIGNS or unicodedata.category(c).startswith("P") else c for c in text)


def _words_without_articles(text: str) -> str:
    """The text as in `normalise`, where the A of "Vitamin A", "I.a." and "A-ha" is no article.

    An article is a word of its own. Behind "a" stands another word; the initial of "Chester A. Arthur" is like it.
    """
    tokens = text.split()
    kept = (
        token
        for token, following in itertools.zip_longest(tokens, tokens[1:], fillvalue="")
        if not _is_article(token.lower().lstrip(_OPENING), following)
    )
    return _words(" ".join(kept))


def _is_article(token: str, following: str) -> bool:
    return token in ("an", "the") or (token in ("a", "a.") and sum(map(str.isalnum, following)) > 1)


def first_line(text: str) -> str:
    """The first non-blank line, stripped; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def contains_alias(answer: str, aliases: Sequence[str]) -> bool:
    """Whether the answer contains an alias as whole words, or equals one as in `exact_match`.

    Case and punctuation do not count, and neither do articles, unless the rest of the alias is a letter or function
    words: "The Who" is not in "who is it?". Case counts in an alias that is a letter, a function word or a code of two
    letters: "IN" for India is not in "in France". An alias of nothing but articles and punctuation is in no answer.
    """
    texts = [f" {words} " for words in (_words(answer), _words_without_articles(answer))]
    return bool(exact_match(answer, aliases)) or any(
        _names(answer, _cased_words(alias))
        if _is_common(alias, aliases)
        else any(f" {words} " in text for words in _alias_words(alias) for text in texts)
        for alias in aliases
    )


def _is_common(alias: str, aliases: Sequence[str]) -> bool:
    """Whether an alias is one word that, in lower case, many sentences have: a letter, a function word, a code."""
    word = _words(alias)
    if word == word.upper() or word in ("a", "an", "the"):  # digits and scripts without capitals; what is in no answer
        return False
    is_code = len(word) == 2 and word.isascii() and word.isalpha() and (alias.isupper() or alias.upper() in aliases)
    return is_code or len(word) == 1 or word in _FUNCTION_WORDS


def _names(answer: str, word: str) -> bool:
    """Whether an answer has a word in its own case, at a place where the word would not have that case anyway."""
    if not word[0].isupper() or word == "I" or answer.isupper():
        return False
    found = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", unicodedata.normalize("NFC", answer))
    begins = (_BEGINS.search(answer[: match.start()]) is not None for match in found)
    # At the beginning of a sentence every word has a capital; only a word of several capitals is a name there.
    return any(not begins_sentence or (len(word) > 1 and word.isupper()) for begins_sentence in begins)


def _alias_words(alias: str) -> Sequence[str]:
    """What an answer has to contain: the words of the alias, or those without its articles."""
    if not normalise(alias):
        return ()
    words, rest = _words(alias), _words_without_articles(alias)
    is_stub = (len(rest) == 1 and rest.isalpha()) or _FUNCTION_WORDS.issuperset(rest.split())
    return (words,) if is_stub else (words, rest)


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
