"""What stopping early saves, and how far the built-in model can be compressed.

    python benchmarks/frontier.py stop --out DIR [--task T[@FOLDER]:LIMIT …] [--recipe R …] [--write]
    python benchmarks/frontier.py frontier --out DIR [--task T:LIMIT …] [--method M …] [--write]

`stop` asks the dense model and every recipe all items of each task, in the order and the batches of
`stop = "decided"`, and compares: the verdict where it would have stopped, and the verdict on all items.
`frontier` is `kick frontier` on several tasks and methods, as a table with its cost. Both resume in DIR.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkick.report.figures.frontier import answer, row_name, write_frontier_figure
from llmkick.statistics import Comparison
from llmkick.study.frontier.search import run_frontier
from llmkick.study.progress import Observer, Silent
from llmkick.study.results.comparisons import compare_all, describe_task
from llmkick.study.running.context import StudyContext
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.running.preparation import open_journal, prepare
from llmkick.study.running.schedule import Schedule
from llmkick.study.running.study_run import JournalWriter
from llmkick.study.spec.study import Study, make_study

MODEL = "smollm2-135m-instruct"
POCKET = ("factoid_qa:480", "multiple_choice:cloze:352", "context_qa:open:360", "context_qa:closed:360")
RECIPES = ("wanda@0.25", "wanda@0.5", "rtn@4b-g128")
METHODS = ("magnitude", "wanda", "wanda@n:m", "sparsegpt", "rtn", "gptq")
RESULTS = Path(__file__).parent / "results"


class Lines(Silent):
    """A line a stage, on stderr."""

    def stage(self, title: str, total: int) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {title} ({total})\n")


def spec(text: str) -> dict[str, Any]:
    """`factoid_qa:480`, `factoid_qa@FOLDER:480` for published data, `instruction:8/64` for 64 new tokens an answer."""
    name, _, limit = text.rpartition(":")
    name, _, source = name.partition("@")
    limit, _, tokens = limit.partition("/")
    given = {"source": source} if source else {}
    return {"name": name, "limit": int(limit), **given, **({"max_new_tokens": int(tokens)} if tokens else {})}


def every_item(study: Study, folder: Path, observer: Observer) -> list[list[str]]:
    """A row for each task × recipe: a study that stops when decided, and the same study on every item."""
    executor, journal = LocalExecutor(), open_journal(study, folder)
    try:
        context = prepare(study, folder=folder, journal=journal, observer=observer, source=executor)
        writer = JournalWriter(context=context, schedule=Schedule(cells=(), pending=()))
        for variant in context.variants():
            cells = context.cells(variant)
            if not all(map(context.evaluation.has_every_item, cells)):
                model = context.model if variant.is_dense else executor.compressed(variant, context, writer)
                for cell in cells:
                    context.evaluation.fill_every_item(model, cell)
        return _rows(context)
    finally:
        journal.close()


def _rows(context: StudyContext) -> list[list[str]]:
    study, records = context.study, context.journal.records()
    tasks = [describe_task(task, context.prompting) for task in context.tasks]
    common = {"margin": study.margin, "alpha": study.alpha, "same_weights": lambda _: False}
    whole = compare_all(records, tasks, study.recipes, **common)
    stopped = compare_all(records, tasks, study.recipes, orders=context.orders, **common)
    return [stop_row(early, full) for early, full in zip(stopped, whole, strict=True)]


def stop_row(early: Any, full: Any) -> list[str]:
    assert isinstance(early, Comparison)
    assert isinstance(full, Comparison)
    assert early.stopping is not None
    loss = "–" if full.relative_drop is None else f"{full.relative_drop:+.1%}"
    used = early.stopping.items / early.stopping.of
    dense = "–" if full.dense is None else f"{full.dense:.2f}"
    return [
        full.task,
        full.recipe,
        dense,
        loss,
        f"{early.stopping.items} of {early.stopping.of} ({used:.0%})",
        early.verdict,
        full.verdict,
        full.paper_verdict or "–",
    ]


STOP_HEADER = (
    "task",
    "recipe",
    "dense",
    "loss on all items",
    "items used",
    "verdict there",
    "verdict on all",
    "point rule",
)


def measure_stopping(tasks: Sequence[str], recipes: Sequence[str], folder: Path, calibration: dict[str, Any]) -> str:
    """Each task in a folder of its own, so that what is done is done."""
    rows = []
    for text in tasks:
        values = {
            "model": MODEL,
            "recipes": list(recipes),
            "tasks": [spec(text)],
            "calibration": calibration,
            "stop": "decided",
        }
        name = "".join(c if c.isalnum() else "-" for c in text.rpartition("/")[2] or text)
        rows = every_item(make_study(values), folder / name, Lines())
        label = "" if "@" not in text else f" ({Path(text.partition('@')[2].rpartition(':')[0]).name})"
        found = [[row[0] + label, *row[1:]] for row in rows]
        rows += found
        sys.stderr.write(table(STOP_HEADER, found) + "\n")
    return table(STOP_HEADER, rows)


def measure_frontier(
    tasks: Sequence[dict[str, Any]], methods: Sequence[str], folder: Path, calibration: dict[str, Any]
) -> str:
    """`kick frontier`, and its tables."""
    study = {
        "model": MODEL,
        "tasks": list(tasks),
        "calibration": calibration,
    }
    result = run_frontier(study, methods, out=folder, observer=Lines())
    write_frontier_figure(result)
    names = list(dict.fromkeys(row.name for row in result.frontiers))
    lines = {row_name(row): {} for row in result.frontiers} | {"all tasks": {}}
    for row in result.frontiers:
        lines[row_name(row)][row.name] = answer(row) + (" (not monotone)" if row.violations else "")
    for row in result.overall:
        lines["all tasks"][row.name] = answer(row)
    costs = []
    for name in names:
        of_name = [row for row in result.cost if row.name == name and row.metric != "perplexity"]
        asked, full = sum(row.items for row in of_name), sum(row.full for row in of_name)
        models = f"{of_name[0]['models']} of {of_name[0]['levels']}"
        costs.append([name, models, f"{asked:,}", f"{full:,}", f"{asked / full:.0%}"])
    asked = sum(row.items for row in result.cost if row.metric != "perplexity")
    full = sum(row.full for row in result.cost if row.metric != "perplexity")
    costs.append(["all", "", f"{asked:,}", f"{full:,}", f"{asked / full:.0%}"])
    cells = [[name, *(found.get(method, "–") for method in names)] for name, found in lines.items()]
    notes = "\n".join(f"- {warning}" for warning in result.warnings)
    return (
        f"Strongest level that matches … weakest that does not.\n\n{table(['task', *names], cells)}\n\n"
        f"{table(['method', 'models made', 'items asked', 'full grid', 'share'], costs)}\n\n{notes}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def main() -> None:
    """Measure, print, and with --write keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stop", "frontier"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", action="append")
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--calibration", default="self", help="self, c4, or a text file")
    parser.add_argument("--windows", default="16x256", help="calibration windows × tokens")
    parser.add_argument("--no-perplexity", action="store_true", help="of `frontier`: leave the control out")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/stopping.md or frontier.md")
    given = parser.parse_args()
    started = time.perf_counter()
    tasks = given.task or POCKET
    sequences, length = map(int, given.windows.split("x"))
    calibration = {"source": given.calibration, "sequences": sequences, "length": length}
    if given.what == "stop":
        title, found = "Stopping when decided", measure_stopping(tasks, given.recipe or RECIPES, given.out, calibration)
    else:
        control = [] if given.no_perplexity else [{"name": "perplexity", "window": 512, "limit": 6}]
        asked = [*map(spec, tasks), *control]
        title, found = "Frontier", measure_frontier(asked, given.method or METHODS, given.out, calibration)
    command = " ".join(word for word in sys.argv[1:] if word != "--write")
    seconds = time.perf_counter() - started
    report = (
        f"# {title}: {MODEL}\n\n`python benchmarks/frontier.py {command}` · {seconds:.0f} s (what was there is not "
        f"asked again) · {os.cpu_count()} cores, Python {platform.python_version()}\n\n{found}\n"
    )
    sys.stdout.write(report)
    if given.write:
        RESULTS.mkdir(exist_ok=True)
        name = "stopping.md" if given.what == "stop" else "frontier.md"
        (RESULTS / name).write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
