"""Readers of data files (CSV, TSV, JSON, JSON lines, parquet; text formats also as .gz) that give rows with positions.

The readers do not convert values: each cell keeps the text or value of the file ("None" is a word, an empty cell is
empty). Missing or damaged data and wrong types raise DataError with file, row and column.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmkick.errors import DataError

_UNREADABLE = (OSError, EOFError, zlib.error)
# Rows of a parquet file in memory at a time. The limit is low because TriviaQA rows contain whole Wikipedia pages.
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class Row:
    """One row: the file's name, the row's number from 1 (for JSON lines the line), and its cells by column.

    `within` is the prefix of the column names in error messages, if the row is a nested object. Every getter raises
    DataError if the column is missing or has a value of another type.
    """

    file: str
    number: int
    values: Mapping[str, Any]
    within: str = ""

    def fail(self, column: str, problem: str) -> NoReturn:
        """Raise DataError with file, row and column."""
        raise DataError(f"{self.file}, row {self.number}, column {self.within + column!r}: {problem}")

    def get(self, column: str) -> Any:
        """The unchanged value of the cell; null is None. Raises DataError if the column is missing."""
        if column not in self.values:
            there = ", ".join(map(repr, self.values)) or "nothing"
            self.fail(column, f"is missing; the row has {there}")
        return self.values[column]

    def text(self, column: str, *, blank: bool = False) -> str:
        """The text of the cell; blank text is an error unless `blank` is true."""
        return self.as_text(column, self.get(column), blank=blank)

    def as_text(self, column: str, value: Any, *, blank: bool = False) -> str:
        """A value inside the cell, checked like `text`."""
        if not isinstance(value, str):
            self.fail(column, f"is {_kind(value)}, not text")
        if not (blank or value.strip()):
            self.fail(column, "is empty")
        return value

    def texts(self, column: str, *, least: int = 1) -> tuple[str, ...]:
        """A list of at least `least` texts, none of them blank."""
        return self.as_texts(column, self.get(column), least=least)

    def as_texts(self, column: str, value: Any, *, least: int = 1) -> tuple[str, ...]:
        """A value inside the cell, checked like `texts`."""
        values = self.as_list(column, value)
        if len(values) < least:
            self.fail(column, f"is a list of {len(values)}, expected at least {least}" if values else "is empty")
        return tuple(self.as_text(column, element) for element in values)

    def as_list(self, column: str, value: Any) -> list[Any]:
        """A value inside the cell, which must be a list."""
        if not isinstance(value, list):
            self.fail(column, f"is {_kind(value)}, not a list")
        return value

    def whole(self, column: str) -> int:
        """An integer; text of digits is accepted, because CSV and TSV cells are text."""
        value = self.get(column)
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                self.fail(column, f"is {value!r}, not a whole number")
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(column, f"is {_kind(value)}, not a whole number")
        return value

    def part(self, column: str, value: Any = None) -> Row:
        """The object in a cell as a nested row; error messages call its columns `column.name`."""
        inner = self.get(column) if value is None else value
        if not isinstance(inner, dict):
            self.fail(column, f"is {_kind(inner)}, not an object")
        return Row(self.file, self.number, inner, f"{self.within}{column}.")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return f"{names.get(type(value), type(value).__name__)} ({str(value)[:40]!r})"


def read_table(path: Path, columns: Sequence[str] = (), *, name: str | None = None) -> Iterator[Row]:
    """The rows of a file. Extensions: .jsonl, .json (JSON lines, as in C4 and CNN/DailyMail), .tsv, .parquet; also .gz.

    All `columns` must exist; other columns of a parquet file are not read. `name` is the file name in error messages.
    Raises DataError for another extension, and for unreadable data, with its row.
    """
    name = name or path.name
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "parquet":
        return _read_parquet(path, columns, name)
    if ending in ("jsonl", "json"):
        return _read_json_lines(path, columns, name)
    if ending == "tsv":
        return _read_delimited(path, columns, name)
    raise DataError(f"{name}: unknown ending; a table is .jsonl, .json, .tsv (or .gz of one) or .parquet")


def read_bytes(path: Path, name: str | None = None) -> bytes:
    """The contents of a file, decompressed if it is .gz. Raises DataError if the file is unreadable or truncated."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except _UNREADABLE as error:
        raise DataError(f"{name or path.name} cannot be read to its end: {error}") from error


def read_text(path: Path, name: str | None = None) -> str:
    """The contents of a file as UTF-8 text. Raises DataError with the line of an invalid character."""
    raw = read_bytes(path, name).removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name or path.name}, line {line}: not UTF-8 ({error.reason})") from error


def read_json(path: Path, name: str | None = None) -> Any:
    """The value of a JSON document. Raises DataError with the line of a syntax error."""
    try:
        return json.loads(read_text(path, name), parse_constant=_no_number)
    except ValueError as error:
        raise DataError(f"{name or path.name}: not JSON ({error})") from error


def read_csv(path: Path, columns: Sequence[str], *, name: str | None = None) -> list[Row]:
    """The rows of a CSV file without a header: exactly these columns, all cells as text, blank lines skipped."""
    name = name or path.name
    rows = []
    for number, cells in _records(csv.reader(_lines(path, name), strict=True), name):
        if len(cells) != len(columns):
            missing = f", column {columns[len(cells)]!r} is missing" if len(cells) < len(columns) else ""
            raise DataError(f"{name}, row {number}: {len(cells)} columns, expected {len(columns)}{missing}")
        rows.append(Row(name, number, dict(zip(columns, cells, strict=True))))
    return rows


def _read_delimited(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    """The rows of a TSV file with a header."""
    records = _records(csv.reader(_lines(path, name), delimiter="\t", strict=True), name)
    _, header = next(records, (0, []))
    _require(columns, header, name)
    for number, cells in records:
        if len(cells) != len(header):
            raise DataError(f"{name}, row {number}: {len(cells)} columns, but the header names {len(header)}")
        yield Row(name, number, dict(zip(header, cells, strict=True)))


def _lines(path: Path, name: str) -> io.StringIO:
    # Not splitlines, because it also splits at Unicode separators inside cells.
    return io.StringIO(read_text(path, name), newline="")


def _records(reader: Iterable[list[str]], name: str) -> Iterator[tuple[int, list[str]]]:
    number, records = 0, iter(reader)
    while True:
        number += 1
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}, row {number}: not CSV ({error})") from error
        if cells:
            yield number, cells


def _read_json_lines(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _json_row(line, columns, name, number)
    except _UNREADABLE as error:
        raise DataError(f"{name}, row {number + 1}: the file cannot be read to its end: {error}") from error


def _json_row(line: bytes, columns: Sequence[str], name: str, number: int) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, row {number}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise DataError(f"{name}, row {number}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f"{name}, row {number}: is {_kind(values)}, not an object with columns")
    row = Row(name, number, values)
    for column in columns:
        row.get(column)
    return row


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read_parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require(columns, file.schema_arrow.names, name)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(columns) or None):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(name, number, values)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{name} is not a readable parquet file (damaged or cut short?): {error}") from error


def _require(columns: Sequence[str], present: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        columns_present = ", ".join(map(repr, present)) or "nothing"
        raise DataError(f"{name}, row 1, column {missing[0]!r}: is missing; the file has {columns_present}")


def refuse_repeated_ids(rows: Iterable[tuple[Row, str]], column: str) -> None:
    """Raise DataError at the first id that repeats the id of an earlier row."""
    seen: dict[str, Row] = {}
    for row, identity in rows:
        first = seen.setdefault(identity, row)
        if first is not row:
            row.fail(column, f"{identity!r} is the id of {first.file}, row {first.number} too")
