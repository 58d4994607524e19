"""Where in a study file a value stands, so that an error can name the line."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llmkick.errors import ConfigError, KickError


class LocatedError(ConfigError):
    """A refusal that knows which value of the study it is about."""

    def __init__(self, message: str, location: tuple[str | int, ...]) -> None:
        super().__init__(message)
        self.location = location


@contextlib.contextmanager
def blaming(*location: Any) -> Iterator[None]:
    """Says of every refusal in here which value it is about."""
    try:
        yield
    except KickError as error:
        raise LocatedError(str(error), location) from error


def place_of(location: tuple[str | int, ...], text: str, values: Any, origin: str) -> str:
    """`study.toml, line 7: tasks.0.limit`."""
    line = line_of(text, location, values)
    return f"{origin}{f', line {line}' if line else ''}: {'.'.join(map(str, location))}"


def line_of(text: str, location: tuple[str | int, ...], values: Any = None) -> int | None:
    """The line (from 1) of a TOML key, given its path, e.g. ("tasks", 0, "limit"): its own or its table's.

    In an array the elements' own lines are found by their `values`. None when nothing is found.
    """
    table: tuple[str | int, ...] = ()
    tables: Counter[str] = Counter()
    best, known = None, 0
    path: tuple[str | int, ...]
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
        if path == location[: len(path)] and len(path) > known:
            best, known = number, len(path)
    if best is not None and known < len(location) and isinstance(location[known], int):
        return _line_of_element(text, best, location[: known + 1], values) or best
    return best


def _keys(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip(" \t\"'") for part in dotted.split("."))


def _line_of_element(text: str, start: int, location: tuple[str | int, ...], values: Any) -> int | None:
    """The line of an array's element, by looking for each element up to it in turn."""
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
