"""How long a report takes to build, how large it is, and how fast Chromium shows it.

    python benchmarks/report.py [--items 14042] [--recipes 40] [--folder DIR] [--markdown]

Builds a synthetic study (invented answers through the real journal), writes its report in a process of its own,
whose peak memory is read, and opens the page from the disk with selenium and Debian's chromium-driver.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT / "tests"), str(ROOT / "src")]  # not this folder: it would hide tests/report

from browser import open_browser, wait_until_ready  # noqa: E402
from llmkick.statistics import compare, compare_perplexity  # noqa: E402
from llmkick.study.journal.journal import Journal  # noqa: E402
from llmkick.study.results.comparisons import overall_by_recipe  # noqa: E402
from llmkick.study.results.records import ResultRow  # noqa: E402
from llmkick.study.results.results import StudyResult  # noqa: E402
from llmkick.tasks.task import Item, Record  # noqa: E402
from report import synthetic  # noqa: E402

TASKS = (
    "factoid_qa", "multiple_choice:letter", "multiple_choice:cloze", "context_qa:closed", "context_qa:open",
    "perplexity",
)  # fmt: skip
LEVELS = tuple(f"0.{level:02}" for level in range(5, 55, 5))
WORDS = ("Paris", "the river", "in 1871", "a small bird", "nobody knows", "London", "hydrogen", "seven", "the king")
LAYERS_OF_A_MODEL = 32
# Builds the report and says how long it took and how much memory it held at most.
CHILD = """
import json, os, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from llmkick.report.page.page import write_report
imported = time.perf_counter()
page = write_report(Path(sys.argv[1]))
print(json.dumps({"seconds": time.perf_counter() - imported, "import_seconds": imported - started,
                  "cpu_seconds": time.process_time(), "load_average": os.getloadavg()[0],
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                  "page_bytes": page.stat().st_size}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=14_042, help="items a task")
    parser.add_argument("--recipes", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="keep the run here; used again when it is there")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        folder = chosen.folder or Path(spare) / "run"
        recipes = recipe_names(chosen.recipes)
        if not (folder / "results.json").is_file():
            build(folder, recipes, chosen.items)
        print(json.dumps({"recipes": len(recipes), "tasks": len(TASKS), "items": chosen.items, **measure(folder)}))


def recipe_names(count: int) -> list[str]:
    """Names whose levels the figures can place."""
    methods = ("magnitude", "wanda", "sparsegpt", "other")
    return [f"{method}@{level}" for method in methods for level in LEVELS][:count]


def build(folder: Path, recipes: Sequence[str], items: int) -> None:
    """A run folder, cell by cell: whatever the number of records, one cell is in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    journal.claim("hash-of-the-study", "name = 'synthetic'\n")
    rows: list[ResultRow] = []
    comparisons: list[Any] = []
    for task in TASKS:
        asked = questions(task, items)
        journal.add_items(task, asked)
        dense: dict[str, float] = {}
        for recipe in ("dense", *recipes):
            records = list(answers(task, recipe, asked))
            journal.add_records(f"{recipe}-{task}", model="toy", recipe=recipe, seed=None, task=task, records=records)
            scores = {record.item_id: record.score for record in records}
            rows.append(ResultRow.model_validate(score_row(task, recipe, scores)))
            if recipe == "dense":
                dense = scores
            else:
                comparisons.append(compared(task, recipe, dense, scores, asked))
        print(f"{task}: made", file=sys.stderr)
    journal.close()
    facts = synthetic.facts(recipes, TASKS, (0,), "float")
    reports = [{**synthetic.report(recipe, None, LAYERS_OF_A_MODEL), "seed": 0} for recipe in recipes]
    StudyResult(
        folder=folder, **facts, tasks=[synthetic.describe(task) for task in TASKS],
        results=synthetic.order(rows, recipes, TASKS), comparisons=comparisons,
        overall=overall_by_recipe(comparisons), compression=reports,
    ).write()  # fmt: skip


def questions(task: str, count: int) -> list[Item]:
    choice = task.startswith("multiple_choice")
    shown = task != "perplexity"
    return [
        Item(
            id=f"{task}-{number:05d}",
            cluster=f"subject-{number % 57}",
            question=f"What is known about subject {number % 57}, fact {number}, and who was the first to say so?"
            if shown
            else "",
            context=f"Passage {number // 5} says what there is to say. " * 6 if "open" in task else "",
            references=(answer_text(number, 0),) if shown else (),
            choices=tuple(answer_text(number, other) for other in range(4)) if choice else (),
        )
        for number in range(count if shown else 64)
    ]


def answer_text(number: int, other: int) -> str:
    return f"{WORDS[(number + other) % len(WORDS)]} {(number * 7 + other * 13) % 997}"


def answers(task: str, recipe: str, items: Sequence[Item]) -> Iterator[Record]:
    """Losses grow with the level; every wrong answer is a text of its own."""
    level = 0.0 if recipe == "dense" else float(recipe.partition("@")[2])
    rng = np.random.default_rng([TASKS.index(task), round(100 * level), len(recipe)])
    known = np.random.default_rng(TASKS.index(task)).random(len(items)) < 0.7
    kept = rng.random(len(items)) > level**2
    choice = task.startswith("multiple_choice")
    details = {"choice_logprobs": [-1.234567, -2.345678, -3.456789, -4.567891], "margin": 1.111111}
    for number, item in enumerate(items):
        if task == "perplexity":
            yield Record(
                item_id=item.id,
                cluster=item.cluster,
                response="",
                score=3 + level**2 + 0.01 * known[number],
                tokens=511,
            )
            continue
        right = bool(known[number] and kept[number])
        text = answer_text(number, 0 if right else 1 + int(100 * level))
        yield Record(
            item_id=item.id, cluster=item.cluster, response=f"The answer is {text}.", score=float(right), tokens=9,
            details={**details, "discipline": f"discipline {number % 4}"} if choice else {"exact_match": float(right)},
        )  # fmt: skip


def score_row(task: str, recipe: str, scores: dict[str, float | None]) -> dict[str, Any]:
    value = float(np.mean(list(scores.values())))
    control = task == "perplexity"
    return {
        "model": "toy", "recipe": recipe, "seed": None, "task": task, "metric": "perplexity" if control else "accuracy",
        "value": float(np.exp(value)) if control else value, "n": len(scores), "unscored": 0, "unscored_reasons": {},
        "truncated": 0, "tokens": 9 * len(scores), "details": {},
    }  # fmt: skip


def compared(task: str, recipe: str, dense: Any, scores: Any, items: Sequence[Item]) -> Any:
    common: dict[str, Any] = {"margin": 0.05, "alpha": 0.05, "task": task, "recipe": recipe, "seeds": []}
    if task == "perplexity":
        return compare_perplexity(dense, scores, dict.fromkeys(dense, 511.0), **common)
    chance = 0.25 if task.startswith("multiple_choice") else 0.0
    return compare(
        dense, scores, clusters={item.id: item.cluster for item in items}, chance=chance, explain=False, **common
    )


def measure(folder: Path) -> dict[str, Any]:
    """Build in a fresh process, then open from the disk."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    beside = folder / "report-items"
    found["beside_bytes"] = sum(path.stat().st_size for path in beside.glob("*")) if beside.is_dir() else 0
    found["beside_files"] = len(list(beside.glob("*"))) if beside.is_dir() else 0
    if shutil.which("chromium") and shutil.which("chromedriver"):
        with open_browser() as browser:
            started = time.perf_counter()
            browser.get((folder / "report.html").resolve().as_uri())
            wait_until_ready(browser, seconds=300)
            found["load_seconds"] = time.perf_counter() - started
            timing = "const t = performance.getEntriesByType('navigation')[0]; return t.domContentLoadedEventEnd"
            found["dom_seconds"] = browser.execute_script(timing) / 1000
            found["status"] = browser.find_element("id", "answers-status").text
            found["console"] = [entry["message"] for entry in browser.get_log("browser")]
    return found


if __name__ == "__main__":
    main()
    print(f"own peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", file=sys.stderr)
