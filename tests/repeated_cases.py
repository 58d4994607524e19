"""Cases of parametrized tests that only repeat lines which other tests run: `make test-all` has them, `make test` not.

repeated_cases.json names them. They are chosen from a run that records how long each test took, and which lines it ran:

    echo '{}' > tests/repeated_cases.json
    make coverage PYTEST='-m "not slow" --cov-context=test --durations=0 -vv' | tee durations.txt
    python tests/repeated_cases.py .coverage durations.txt

Only those folders are considered where the cases of a test are architectures, forms and recipes on the same path of the
code; elsewhere each case is a value of its own. A case stays if it is quick, if fewer than two others run one of its
lines, if a value of its parameters would be gone from its folder, or if a third of its test's cases would not be left.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
FOLDERS = ("tests/compression/", "tests/models/engine/")
QUICK = 0.3  # seconds
TESTS_OF_A_LINE = 2
SHARE_OF_CASES = 1 / 3
NO_NAMES = re.compile(r"[\d.]*|True|False|None")


def listed() -> set[str]:
    """The node ids of all cases in the file."""
    cases: dict[str, list[str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return {f"{test}[{case}]" for test, names in cases.items() for case in names}


def function_of(case: str) -> str:
    """The test that a case belongs to."""
    return case.partition("[")[0]


def lines_of(coverage: Path) -> dict[str, set[tuple[int, int]]]:
    """The lines that each test ran, as (file, line), from a data file of coverage.py with a context for each test."""
    lines: dict[str, set[tuple[int, int]]] = defaultdict(set)
    with sqlite3.connect(coverage) as data:
        contexts = {number: str(name).rpartition("|")[0] for number, name in data.execute("SELECT * FROM context")}
        for file, context, bits in data.execute("SELECT file_id, context_id, numbits FROM line_bits"):
            lines[contexts[context]].update((file, line) for line in _numbers(bits))
    return lines


def _numbers(bits: bytes) -> Iterator[int]:
    for place, byte in enumerate(bits):
        yield from (8 * place + bit for bit in range(8) if byte & 1 << bit)


def seconds_of(durations: Path) -> dict[str, float]:
    """The seconds that each test took itself, from what pytest printed with --durations=0."""
    found = re.findall(r"^\s*([\d.]+)s call\s+(.+?)\s*$", durations.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: float(seconds) for seconds, name in found}


def values_of(case: str) -> set[tuple[str, str]]:
    """The names among the parameters of a case, with the folder that shall keep each."""
    folder = case.partition("::")[0].rpartition("/")[0]
    parts = re.split(r"[-\s]", case.partition("[")[2].removesuffix("]"))
    return {(folder, part) for part in parts if not NO_NAMES.fullmatch(part)}


def repeated(lines: dict[str, set[tuple[int, int]]], seconds: dict[str, float]) -> list[str]:
    """The cases that can be left out, the longest first."""
    tests = Counter(function_of(case) for case in seconds)
    left, running = Counter(tests), Counter(line for each in lines.values() for line in each)
    values = Counter(value for case in seconds for value in values_of(case))
    chosen = []
    for case in sorted(seconds, key=lambda case: (-seconds[case], case)):
        if "[" not in case or not case.startswith(FOLDERS) or seconds[case] < QUICK or not lines.get(case):
            continue
        test = function_of(case)
        enough = left[test] - 1 >= max(1, SHARE_OF_CASES * tests[test])
        again = all(running[line] > TESTS_OF_A_LINE for line in lines[case])
        if enough and again and all(values[value] > 1 for value in values_of(case)):
            left[test] -= 1
            running.subtract(lines[case])
            values.subtract(values_of(case))
            chosen.append(case)
    return chosen


def main() -> None:
    """Choose the cases anew and write the file."""
    coverage, durations = map(Path, sys.argv[1:])
    seconds = seconds_of(durations)
    chosen = repeated(lines_of(coverage), seconds)
    cases: dict[str, list[str]] = {}
    for case in sorted(chosen):
        cases.setdefault(function_of(case), []).append(case.partition("[")[2].removesuffix("]"))
    FILE.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    spared = sum(seconds[case] for case in chosen)
    sys.stdout.write(f"{len(chosen)} of {len(seconds)} cases, {spared:.0f} of {sum(seconds.values()):.0f} seconds\n")


if __name__ == "__main__":
    main()
