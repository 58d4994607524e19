"""Short names for models that are compared: what a table's row, a journal's column and a file name can hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from llmkick.errors import ConfigError
from llmkick.models.checkpoints.checkpoint import is_server
from llmkick.models.server.address import parse_address


def label_others(references: Sequence[str], *, taken: Collection[str]) -> dict[str, str]:
    """Labels and references of other models, in order: `name=reference` gives its own, others get a short name.

    Of a folder or file its name; where two share it, with the folder around it. Raises ConfigError for a label that
    is taken, or that two still share, and for a malformed server address.
    """
    split = [_split(text) for text in references]
    for _, reference in split:
        parse_if_server(reference)
    for shorten in (_name, _longer_name):
        labels = [given or shorten(reference) for given, reference in split]
        if len(set(labels)) == len(labels):
            break
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]!r} would name two models; name them yourself: NAME=MODEL")
    clash = next((label for label in labels if label in taken), None)
    if clash is not None:
        raise ConfigError(f"{clash!r} already names the dense model or a recipe; name the other model: NAME=MODEL")
    return {label: reference for label, (_, reference) in zip(labels, split, strict=True)}


def parse_if_server(reference: str) -> None:
    """Raise ConfigError for a server's address that cannot be read."""
    if is_server(reference):
        parse_address(reference)


def _split(text: str) -> tuple[str, str]:
    """`name=reference`; a path or an address may hold "=" too, but no such name before it."""
    found = re.fullmatch(r"([\w.+@ -]+)=(.+)", text)
    name, reference = (found[1].strip(), found[2]) if found else ("", text)
    if not reference.strip():
        raise ConfigError(f"an empty model reference: {text!r}")
    return name, reference


def _name(reference: str) -> str:
    return _of_path(reference, lambda path: path.stem if path.suffix.lower() == ".gguf" else path.resolve().name)


def _longer_name(reference: str) -> str:
    return _of_path(reference, lambda path: f"{path.resolve().parent.name}/{_name(reference)}")


def _of_path(reference: str, name: Callable[[Path], str]) -> str:
    if is_server(reference):
        return reference.partition("#")[2]
    path = Path(reference).expanduser()
    return name(path) if path.is_dir() or path.suffix.lower() == ".gguf" else reference
