"""Text of models and users made fit for files: Markdown, in which nothing of it is markup, and XML."""

from __future__ import annotations

import unicodedata

# Characters that have no meaning in Markdown, GitHub's kind included.
_PLAIN_PUNCTUATION = " ,;'?%"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def markdown(text: str, *, limit: int = 200) -> str:
    """Return a text as one line of Markdown that shows it as it is: no markup, no links, no mentions, no HTML.

    Punctuation that may mean something becomes a numeric entity, because entities never start markup. Line breaks are
    shown as ⏎. A text of more than `limit` characters is cut.
    """
    cut = _shown(text, limit)
    lines = cut.replace("\r\n", "\n").replace("\r", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    return "".join(map(_escaped, lines)) or "(empty)"


def xml(text: str) -> str:
    """Return a text without the characters that XML 1.0 cannot hold."""
    return "".join(sign if _is_in_xml(sign) else REPLACEMENT for sign in text)


def _shown(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(sign: str) -> str:
    if sign.isascii():
        if sign.isalnum() or sign in _PLAIN_PUNCTUATION:
            return sign
        return f"&#{ord(sign)};" if sign.isprintable() else REPLACEMENT
    # Categories of control, format (also those that turn the direction of text) and surrogate characters.
    return REPLACEMENT if unicodedata.category(sign)[0] == "C" else sign


def _is_in_xml(sign: str) -> bool:
    code = ord(sign)
    return sign in "\t\n" or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
