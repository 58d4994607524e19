"""Short names of external models for table rows, the journal and file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from llmkick.errors import ConfigError
from llmkick.files import named_path
from llmkick.models.server.address import parse_address
from llmkick.models.server_scheme import is_server


def label_others(references: Sequence[str], *, taken: Collection[str]) -> dict[str, str]:
    """Return short name → reference of the external models, in order; `name=reference` sets the name.

    Otherwise the name is the folder or file name, with the parent folder in front if the name is not unique.
    `taken` are names already in use. Raises ConfigError for a name that is taken or that two models share, and for a
    malformed server address.
    """
    split = [_split(text) for text in references]
    for _, reference in split:
        parse_if_server(reference)
    for shorten in (_name, _longer_name):
        names = [given or shorten(reference) for given, reference in split]
        if len(set(names)) == len(names):
            break
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(f"{repeated[0]!r} would name two models; name them yourself: NAME=MODEL")
    clash = next((name for name in names if name in taken), None)
    if clash is not None:
        raise ConfigError(f"{clash!r} already names the dense model or a recipe; name the other model: NAME=MODEL")
    return {name: reference for name, (_, reference) in zip(names, split, strict=True)}


def parse_if_server(reference: str) -> None:
    """Raise ConfigError for a malformed server address; ignore other references."""
    if is_server(reference):
        parse_address(reference)


def _split(text: str) -> tuple[str, str]:
    """Return (name, reference); the name is "" if the text has none, because paths and addresses can contain "="."""
    match = re.fullmatch(r"([\w.+@ -]+)=(.+)", text)
    name, reference = (match[1].strip(), match[2]) if match else ("", text)
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
    path = named_path(reference)
    return name(path) if path.is_dir() or path.suffix.lower() == ".gguf" else reference
