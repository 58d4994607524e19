"""The paper's tables and claims, each with the place that has it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from pydantic import BaseModel, ConfigDict


class _Row(BaseModel):
    """A frozen record of numbers.toml that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperRow(_Row):
    """A row of a table, numbers as printed; `method` is empty if the columns are the methods."""

    task: str
    method: str = ""
    values: tuple[float, ...]


class PaperTable(_Row):
    """A table of the paper, or numbers of its text."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    @property
    def label(self) -> str:
        """The name in a sentence: `table-3` → "Table 3"."""
        return self.id.replace("-", " ").capitalize()

    def value(self, task: str, method: str, column: str) -> float:
        """The number of a row in a column. Raises KeyError if the table has no such row or column."""
        rows = [row for row in self.rows if (row.task, row.method) == (task, method)]
        if not rows or column not in self.columns:
            raise KeyError((self.id, task, method, column))
        return rows[0].values[self.columns.index(column)]


class _Cite(_Row):
    """The rows of a task in a table; without columns, all of them."""

    table: str
    task: str
    columns: tuple[str, ...] = ()


class PaperClaim(_Row):
    """A claim of the paper in our words, and where the paper's numbers for it stand."""

    id: int
    title: str
    text: str
    cites: tuple[_Cite, ...] = ()
    prose: tuple[str, ...] = ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """The paper's numbers as sentences, each beginning with its place in the paper."""
        return (*(line for cite in self.cites for line in _sentences(cite)), *self.prose)


class _Paper(_Row):
    """The content of numbers.toml."""

    source: str
    tables: tuple[PaperTable, ...]
    claims: tuple[PaperClaim, ...]


@cache
def _paper() -> _Paper:
    text = resources.files("llmkick.paper").joinpath("numbers.toml").read_text(encoding="utf-8")
    return _Paper.model_validate(tomllib.loads(text))


def paper_source() -> str:
    """Title, venue and version of the paper."""
    return _paper().source


def paper_tables() -> Mapping[str, PaperTable]:
    """Id → table of the paper."""
    return {table.id: table for table in _paper().tables}


def paper_claims() -> Mapping[int, PaperClaim]:
    """Number → claim of the paper, in order."""
    return {claim.id: claim for claim in _paper().claims}


def _sentences(cite: _Cite) -> list[str]:
    """A sentence for each row of the cited task: "Table 3, factoid QA, Wanda: 65.44 at 0 %, 61.24 at 30 % (−6.4 %)"."""
    table = paper_tables()[cite.table]
    columns = cite.columns or table.columns
    lines = []
    for row in (row for row in table.rows if row.task == cite.task):
        values = {column: table.value(row.task, row.method, column) for column in columns}
        dense = values.get("0 %")
        parts = [
            f"{value:g} at {column}" + (f" ({100 * (value / dense - 1):+.1f} %)" if dense and column != "0 %" else "")
            for column, value in values.items()
        ]
        joined = (
            ", ".join(parts).replace("-", "−")
            if dense
            else ", ".join(f"{column} {value:g}" for column, value in values.items())
        )
        lines.append(f"{', '.join(filter(None, (table.label, row.task, row.method)))}: {joined}")
    return lines
