"""Scores of a model, dense and compressed, on the published data sets: python benchmarks/published.py DATA [--write].

DATA holds a folder for each data set in its official layout: freebaseqa, popqa, mmlu, triviaqa, wikitext2, c4,
cnn_dailymail, mt_bench (see docs/data.md). A study for each protocol, of questions, or with --texts of summaries and
open answers, scored without a judge; stopped, the same command goes on where it was.
"""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import llmkick
from llmkick.cli.progress import TerminalProgress
from llmkick.statistics import Comparison
from llmkick.study.results.records import AnyComparison, ResultRow
from llmkick.study.results.results import StudyResult

RECIPES = ("wanda@0.25", "gptq@4b-g128")
RESULTS = Path(__file__).parent / "results"


def tasks(data: Path, protocol: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every task of a protocol on the data set that it was published with."""
    asked: list[dict[str, Any]] = [
        {"name": "factoid_qa", "source": "freebaseqa"},
        {"name": "factoid_qa:popqa", "source": "popqa"},
        {"name": "multiple_choice:letter", "source": "mmlu", "shots": 5},
        {"name": "context_qa:closed", "source": "triviaqa", "split": "rc"},
        {"name": "context_qa:open", "source": "triviaqa", "split": "rc", "evidence_tokens": options.evidence},
    ]
    if protocol == "strict":  # cloze is not in the paper
        asked.insert(3, {"name": "multiple_choice:cloze", "source": "mmlu"})
    texts = [{"name": "perplexity", "source": "wikitext2"}, {"name": "perplexity:c4", "source": "c4"}]
    return [
        {**task, "source": str(data / task["source"]), "protocol": protocol, "limit": limit}
        for some, limit in ((asked, options.questions), (texts, options.windows))
        for task in some
    ]


def texts(data: Path, protocol: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Summaries and answers of any length."""
    common = {"protocol": protocol, "max_new_tokens": options.new_tokens}
    return [
        {"name": "summarization", "source": str(data / "cnn_dailymail"), "limit": options.questions, **common},
        {"name": "instruction", "source": str(data / "mt_bench"), **common},
    ]


def study(name: str, tasks: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The study of some tasks."""
    return {
        "name": name,
        "model": options.model,
        "recipes": list(RECIPES),
        "dtype": options.dtype,
        "calibration": {"sequences": 16, "length": 256},
        "tasks": tasks,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def scores(result: StudyResult) -> str:
    """A row for each task: the dense score and what each recipe made of it."""
    cells = {(row["recipe"], row["task"]): row for row in result.results}
    comparisons = {(comparison.recipe, comparison.task): comparison for comparison in result.comparisons}
    rows = []
    for task in (task.name for task in result.tasks):
        dense = cells["dense", task]
        rows.append(
            [task, f"{dense['n']}", number(dense), *(compared(cells, comparisons, recipe, task) for recipe in RECIPES)]
        )
    return table(["task", "scored", "dense", *RECIPES], rows)


def number(row: ResultRow) -> str:
    return "–" if row.value is None else f"{row.value:.3f}"


def compared(
    cells: Mapping[tuple[str, str], ResultRow],
    comparisons: Mapping[tuple[str, str], AnyComparison],
    recipe: str,
    task: str,
) -> str:
    """Score, verdict, loss with its interval."""
    row, comparison = cells[recipe, task], comparisons.get((recipe, task))
    if not isinstance(comparison, Comparison):
        return number(row)
    drop, interval, verdict = comparison.relative_drop, comparison.interval, f" {comparison.verdict}"
    if drop is None or interval is None:
        return number(row) + verdict
    return f"{number(row)}{verdict} ({100 * drop:+.0f} % [{100 * interval[0]:+.0f}, {100 * interval[1]:+.0f}])"


def left_out(result: StudyResult) -> str:
    """What the data sets' readers left out, and what has no score."""
    lines = [f"- {task.name}: {note}" for task in result.tasks for note in task.facts.get("notes", ())]
    lines += [f"- {warning}" for warning in result.warnings]
    return "\n".join(lines)


def main() -> None:
    """Run the studies, print the tables, write them with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--questions", type=int, default=500, help="a data set, seeded and stratified")
    parser.add_argument("--windows", type=int, default=12, help="windows of running text")
    parser.add_argument("--evidence", type=int, default=192, help="tokens of evidence, open book")
    parser.add_argument("--texts", action="store_true", help="summaries and open answers instead: hours on a CPU")
    parser.add_argument("--protocol", action="append", choices=["strict", "paper"], help="default: both")
    parser.add_argument("--new-tokens", type=int, default=64, help="of a generated text")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the run folders go")
    parser.add_argument("--write", action="store_true", help="write results/published.md, or published-texts.md")
    options = parser.parse_args()
    kind = "texts" if options.texts else "questions"
    target = RESULTS / ("published-texts.md" if options.texts else "published.md")
    parts = [
        f"# Scores on the published data sets: {kind}\n\n`python benchmarks/published.py {' '.join(sys.argv[1:])}` · "
        f"llmkick {llmkick.__version__} · {platform.machine()}\n\n{options.model} in {options.dtype}; samples of "
        f"{options.questions} items a data set. Loss with its 95 % interval."
    ]
    for protocol in options.protocol or ("strict", "paper"):
        asked = (texts if options.texts else tasks)(options.data, protocol, options)
        name = f"published-{protocol}{'-texts' if options.texts else ''}"
        with TerminalProgress(Console(stderr=True)) as watcher:
            result = llmkick.run_study(study(name, asked, options), out=options.out / name, observer=watcher)
        parts.append(f"## {name}\n\n{scores(result)}\n\n{left_out(result)}")
    text = "\n\n".join(parts) + "\n"
    sys.stdout.write(text)
    if options.write:
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
