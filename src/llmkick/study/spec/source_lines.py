"""The location of a value in a study file, so that error messages can name its line and key."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llmkick.errors import ConfigError, KickError

# The path of a value in a study, e.g. ("tasks", 0, "limit").
Location = tuple[str | int, ...]


class LocatedError(ConfigError):
    """An error about one value of a study; `location` is the path of that value."""

    def __init__(self, message: str, location: Location) -> None:
        super().__init__(message)
        self.location = location


@contextlib.contextmanager
def errors_at(*location: str | int) -> Iterator[None]:
    """Convert every KickError of the `with` block to a LocatedError about the value at `location`."""
    try:
        yield
    except KickError as error:
        raise LocatedError(str(error), location) from error


def place_of(location: Location, text: str, values: object, origin: str) -> str:
    """Return the location of a value for a message, e.g. `study.toml, line 7: tasks.0.limit`."""
    line = line_of(text, location, values)
    return f"{origin}{f', line {line}' if line else ''}: {'.'.join(map(str, location))}"


def line_of(text: str, location: Location, values: object = None) -> int | None:
    """Return the line (from 1) of the TOML key at `location`, or of the table that should hold the key, or None.

    `values` is the parsed study. It gives the elements of an array, which the function searches in the text.
    """
    table: Location = ()
    tables: Counter[str] = Counter()
    best, depth = None, 0
    path: Location
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.fullmatch(r"\s*(\[\[?)([^\[\]#=]+)\]\]?\s*(#.*)?", line)
        assignment = re.match(r"""\s*([\w."' -]+?)\s*=""", line)
        if header:
            table = _keys(header[2])
            if header[1] == "[[":
                table = (*table, tables[header[2]])
                tables[header[2]] += 1
            path = table
        elif assignment:
            path = (*table, *_keys(assignment[1]))
        else:
            continue
        if path == location[: len(path)] and len(path) > depth:
            best, depth = number, len(path)
    if best is not None and depth < len(location) and isinstance(location[depth], int):
        return _line_of_element(text, best, location[: depth + 1], values) or best
    return best


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip(" \t\"'") for part in dotted.split("."))


def _line_of_element(text: str, start: int, location: Location, values: Any) -> int | None:
    """Return the line of an array element, by a search for each element up to this element in turn."""
    *array, index = location
    try:
        for key in array:
            values = values[key]
        elements = [value["name"] if isinstance(value, dict) else value for value in values[: int(index) + 1]]
    except (KeyError, IndexError, TypeError):
        return None
    lines = text.splitlines(keepends=True)
    bare = "".join(re.sub(r"^(\s*)#.*", "", line) for line in lines)
    position = bare.index("=", len("".join(bare.splitlines(keepends=True)[: start - 1])))
    for element in elements:
        position = bare.find(str(element), position)
        if position < 0:
            return None
        position += len(str(element))
    return bare.count("\n", 0, position) + 1
