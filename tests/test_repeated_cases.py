"""Which cases only `make test-all` runs: the choice, and that the list names tests that are there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import repeated_cases
from repeated_cases import function_of, lines_of, listed, repeated, seconds_of, values_of

ROOT = Path(__file__).resolve().parent.parent
A, B = "tests/compression/test_a.py::test_one", "tests/models/engine/test_b.py::test_two"


def test_every_listed_test_is_there():
    names = {function_of(case) for case in listed()}
    assert names
    for name in names:
        path, _, function = name.partition("::")
        assert f"def {function.rpartition('::')[2]}(" in (ROOT / path).read_text(encoding="utf-8"), name
    assert all(case.startswith(repeated_cases.FOLDERS) for case in listed())


def test_listed_cases_are_left_out(pytestconfig: pytest.Config, request: pytest.FixtureRequest):
    if pytestconfig.option.markexpr == "not slow":
        assert not listed() & {item.nodeid for item in request.session.items}


def lines(*numbers: int) -> set[tuple[int, int]]:
    return {(1, number) for number in numbers}


def test_the_longest_are_chosen_while_others_run_their_lines():
    cases = [f"{A}[{name}-gpt2]" for name in "abcdef"]
    seconds = {case: 9.0 - place for place, case in enumerate(cases)} | {f"{A}[a-x]": 20.0, f"{B}[b-x]": 0.01}
    run = {case: lines(1, 2) for case in seconds}
    seconds |= {f"tests/compression/test_c.py::test_three[{name}]": 0.01 for name in "abcdef"}
    # Seven cases, of which three stay; x is a value in each folder.
    assert repeated(run, seconds) == cases[:4]
    run[cases[1]] = lines(1, 2, 3)  # the third line is its own
    assert repeated(run, seconds) == [cases[0], *cases[2:5]]
    for case in cases[:3]:
        run[case] = lines(3)  # of three tests, two stay
    assert repeated(run, seconds) == [cases[0], *cases[3:]]


def test_a_value_stays_in_its_folder_and_numbers_are_none():
    assert values_of(f"{A}[gpt2-True-0.5-16]") == {("tests/compression", "gpt2")}
    seconds = {f"{A}[gpt2-1]": 3.0, f"{A}[llama-1]": 2.0, f"{A}[llama-2]": 1.0}
    assert repeated({case: lines(1) for case in [*seconds, "x", "y"]}, seconds) == [f"{A}[llama-1]"]


@pytest.mark.parametrize(
    ("case", "seconds"), [(f"{A}[a]", 0.05), (A, 9.0), ("tests/claims/test_c.py::test_three[a]", 9.0)]
)
def test_quick_tests_those_without_cases_and_other_folders_stay(case: str, seconds: float):
    others = dict.fromkeys([f"{case}-{number}]" for number in range(5)], 0.0)
    assert repeated({name: lines(1) for name in [case, *others]}, {case: seconds, **others}) == []


def test_a_run_is_read(tmp_path: Path):
    said = tmp_path / "durations.txt"
    said.write_text(f"12.50s call     {A}[2 × 3-ä]\n  0.30s setup    {A}[a]\n0.10s call     {B}\n", encoding="utf-8")
    assert seconds_of(said) == {f"{A}[2 × 3-ä]": 12.5, B: 0.1}
    with sqlite3.connect(tmp_path / "data") as data:
        data.execute("CREATE TABLE context (id INTEGER, context TEXT)")
        data.execute("CREATE TABLE line_bits (file_id INTEGER, context_id INTEGER, numbits BLOB)")
        data.executemany("INSERT INTO context VALUES (?, ?)", [(1, f"{A}[a]|run"), (2, f"{A}[a]|setup")])
        data.executemany("INSERT INTO line_bits VALUES (?, ?, ?)", [(7, 1, b"\x02\x01"), (7, 2, b"\x80")])
    assert lines_of(tmp_path / "data") == {f"{A}[a]": {(7, 1), (7, 8), (7, 7)}}
