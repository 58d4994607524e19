"""The model card of a compressed model: that of its source, with a note of what was done."""

from __future__ import annotations

import re
from typing import Any

# A name that the Hugging Face hub accepts as a model: `name` or `owner/name`.
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FRONT_MATTER = re.compile(r"\A(---[ \t]*\r?\n)(.*?)(^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)


def with_note(card: bytes, note: str, base_model: str) -> bytes:
    """A model card with `note` at its end, and `base_model` in its front matter unless it names one.

    Everything else is kept byte for byte, whatever its encoding. A front matter that is not YAML is left as it is.
    """
    mark, body = (b"\xef\xbb\xbf", card[3:]) if card.startswith(b"\xef\xbb\xbf") else (b"", card)
    text = body.decode("utf-8", errors="surrogateescape")
    end = "\r\n" if "\r\n" in text else "\n"
    text = _with_base_model(text, base_model, end)
    gap = "" if not text else end if text.endswith("\n") else 2 * end
    text += gap + note.strip("\n").replace("\n", end) + end
    return mark + text.encode("utf-8", errors="surrogateescape")


def _with_base_model(text: str, base_model: str, end: str) -> str:
    if not _HUB_NAME.fullmatch(base_model):
        return text
    # As JSON, which is YAML too: a bare name such as 1e5 or yes would be another type.
    line = f'base_model: "{base_model}"{end}'
    match = _FRONT_MATTER.match(text)
    if match is None:
        return f"---{end}{line}---{end}{end}{text}"
    values = _mapping(match[2])
    if values is None or "base_model" in values:
        return text
    if _mapping(match[2] + line) != {**values, "base_model": base_model}:
        return text
    return match[1] + match[2] + line + text[match.start(3) :]


def _mapping(text: str) -> dict[Any, Any] | None:
    """The mapping in a YAML text, empty for an empty one; None where it is something else."""
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if values is None:
        return {}
    return values if isinstance(values, dict) else None
