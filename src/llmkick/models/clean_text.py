"""Text from outside, made fit for every file that a run writes: half a character and NUL become U+FFFD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The Unicode character that stands for one that could not be read.
REPLACEMENT = "\ufffd"
# A half of a UTF-16 pair, which no UTF-8 file can hold, and NUL, at which SQLite and browsers end a text.
_UNFIT = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str) -> str:
    """The text with REPLACEMENT for what no file can hold; the two halves of a character that stand together join."""
    if not _UNFIT.search(text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\x00", REPLACEMENT)


def clean_value(value: Any) -> Any:
    """A value of JSON with every text in it cleaned; the same object where nothing has to change."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        items = [clean_value(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, Mapping):
        pairs = {clean_value(key): clean_value(item) for key, item in value.items()}
        same = all(a is b and pairs[a] is value[b] for a, b in zip(pairs, value, strict=False))
        return value if same and len(pairs) == len(value) else pairs
    return value
