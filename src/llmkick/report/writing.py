"""Files that exist whole or not at all."""

from __future__ import annotations

from pathlib import Path

from llmkick.errors import DataError


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all. Raises DataError when the folder cannot be written to."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate in a model's answer has no UTF-8 form; shown as its escape it spoils nothing.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error}") from error
    return path
