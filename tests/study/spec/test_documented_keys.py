"""docs/studies.md lists every key of a study file, with its default and the tasks that take it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from llmkick.study.spec.sections import CalibrationSpec, JudgeSpec, RecoverySpec, ServerSpec, TaskSpec
from llmkick.study.spec.study import Study
from llmkick.tasks.registry import TASKS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "studies.md"
SECTIONS: dict[str, type[BaseModel]] = {
    "calibration": CalibrationSpec, "recovery": RecoverySpec, "server": ServerSpec, "judge": JudgeSpec,
}  # fmt: skip


def rows(heading: str) -> dict[str, list[str]]:
    """Key → the other cells of its row, of the table below a heading."""
    table = PAGE.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    cells = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines())
    return {row[0].strip("`"): row[1:] for row in cells if row and row[0].startswith("`")}


def of_section(section: str) -> dict[str, list[str]]:
    found = rows("### Calibration, recovery, servers, judge")
    return {key.partition(".")[2]: cells for key, cells in found.items() if key.startswith(f"{section}.")}


TABLES = [
    (Study, rows("## Every key")),
    (TaskSpec, rows("### A task")),
    *((spec, of_section(name)) for name, spec in SECTIONS.items()),
]


@pytest.mark.parametrize(("spec", "table"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_key_is_in_the_table(spec: type[BaseModel], table: dict[str, list[str]]) -> None:
    assert set(table) == set(spec.model_fields)


@pytest.mark.parametrize(("spec", "table"), TABLES, ids=lambda value: getattr(value, "__name__", ""))
def test_defaults_are_those_of_the_program(spec: type[BaseModel], table: dict[str, list[str]]) -> None:
    for key, (default, *_) in table.items():
        actual = spec.model_fields[key].default
        if actual is PydanticUndefined:
            assert default == "", key
        elif isinstance(actual, BaseModel):
            assert default == "", key  # a table of its own
        elif actual is not None:
            assert json.loads(default.strip("`")) == (list(actual) if isinstance(actual, tuple) else actual), key
        else:
            assert default, key


def test_each_task_key_names_the_tasks_that_take_it() -> None:
    for key, (_, tasks, _) in rows("### A task").items():
        if key in ("name", "id") or tasks in ("all", "published data", "hub", "hub, folder"):
            continue
        taking = {
            base for base, entry in TASKS.items()
            if key in {field.name for field in fields(getattr(import_module(entry.module), entry.factory))}
        }  # fmt: skip
        assert {name.partition(":")[0] for name in re.findall(r"`([a-z_:]+)`", tasks) if name != "paper"} == taking, key
