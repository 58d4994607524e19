"""JSON data embedded in a page: escaped so that it cannot end its script element, and deflated if large."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib

# JSON with more characters than this is deflated; browsers since 2023 can decompress it.
PLAIN_LIMIT = 1_000_000


def embedded(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A lone surrogate has no UTF-8 form; as an escape it is valid JSON.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def packed(value: object) -> str:
    """Like `embedded`; a large value is deflated: {"deflated": base64 of zlib of its JSON}."""
    text = embedded(value)
    return text if len(text) <= PLAIN_LIMIT else embedded({"deflated": _base64(zlib.compress(text.encode(), 9))})


def deflated(value: object) -> str:
    """base64 of a value's JSON, compressed fast by zlib: for separate files, time matters more than size."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _base64(zlib.compress(text.encode("utf-8", "backslashreplace"), 3))


def sha256(text: str) -> str:
    """The hash of a script as in a content security policy: base64 of the sha256 of its UTF-8 bytes."""
    return _base64(hashlib.sha256(text.encode("utf-8")).digest())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
