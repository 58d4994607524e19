"""Which text to calibrate on: the model's own, the pocket texts, and C4, on perplexity and two tasks.

    python benchmarks/calibration_sources.py --out DIR [--model M …] [--c4 FILE] [--wikitext FOLDER] [--recipe R …]
        [--task T[@SOURCE]:LIMIT …] [--seeds N] [--sequences N] [--length N] [--write]

C4 comes from a local file (JSON lines, .gz too), and is left out without one. Perplexity is measured on WikiText-2
if `--wikitext FOLDER` gives it, else on the pocket texts, which flatters the source "pocket".
Each model is one study with the axis `calibration.source`; it resumes in DIR/MODEL. `--write` puts the tables into
benchmarks/results/calibration_sources.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llmkick.report.formatting import percent
from llmkick.study.progress import Silent
from llmkick.study.results.results import StudyResult
from llmkick.study.run import run_study

MODEL = "smollm2-135m-instruct"
RECIPES = ("wanda@0.5", "sparsegpt@0.5", "gptq@4b-g128")
TASKS = ("factoid_qa:480", "multiple_choice:cloze:352")
RESULTS = Path(__file__).parent / "results" / "calibration_sources.md"


class Lines(Silent):
    """A line a stage, on stderr."""

    def stage(self, title: str, total: int) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {title} ({total})\n")


def task_of(text: str) -> dict[str, Any]:
    """`multiple_choice:cloze:352`, `factoid_qa@FOLDER:480` for published data."""
    name, _, limit = text.rpartition(":")
    name, _, source = name.partition("@")
    return {"name": name, "limit": int(limit), **({"source": source} if source else {})}


def study_of(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The study of one model: every recipe with every source and seed."""
    sources = ["self", "pocket", *([options.c4] if options.c4 else [])]
    perplexity = {"name": "perplexity", "window": options.window, "limit": options.windows}
    return {
        "name": "calibration sources",
        "model": model,
        "recipes": list(options.recipe),
        "seeds": list(range(options.seeds)),
        "calibration": {"source": sources, "sequences": options.sequences, "length": options.length},
        "tasks": [
            *map(task_of, options.task),
            {**perplexity, **({"source": options.wikitext} if options.wikitext else {})},
        ],
    }


def table(result: StudyResult) -> list[str]:
    """A row for each recipe × source: perplexity over the dense model's, and the share of each task that is kept."""
    tasks = [task.name for task in result.tasks]
    lines = [f"| recipe | calibrated on | {' | '.join(tasks)} |", f"| --- | --- |{' --- |' * len(tasks)}"]
    cells = {(comparison.recipe, comparison.task): comparison for comparison in result.comparisons}
    for variant in result.variants:
        texts = []
        for task in tasks:
            comparison = cells.get((variant.label, task))
            if comparison is None:
                texts.append("–")
            elif comparison.kind == "perplexity":
                texts.append(f"×{1 + comparison.relative_increase:.3f} {bounds(comparison.interval, 1)}")
            elif comparison.relative_drop is None:
                texts.append(comparison.verdict)
            else:
                texts.append(f"{percent(comparison.relative_drop)} {bounds(comparison.interval)} {comparison.verdict}")
        source = Path(str(variant.axes.get("calibration.source", "not calibrated"))).name
        lines.append(f"| `{variant.recipe}` | {source} | {' | '.join(texts)} |")
    return lines


def bounds(interval: tuple[float, float] | None, above: float | None = None) -> str:
    """An interval in brackets; `above` is added to both ends."""
    if interval is None:
        return ""
    if above is None:
        return f"({percent(interval[0])} to {percent(interval[1])})"
    return f"({above + interval[0]:.3f} to {above + interval[1]:.3f})"


def section(result: StudyResult, seconds: float) -> list[str]:
    """The table of one model, the time that its calibration texts took, and the warnings about them."""
    spent = {**result.timing.seconds.get("calibrate", {}), "whole run, this session": seconds}
    times = ", ".join(f"{detail}: {value:.0f} s" for detail, value in spent.items())
    notes = [f"- {line}" for line in result.warnings if "pocket" in line or "texts that calibrated" in line]
    return [f"## {result.model.name}", "", *table(result), "", f"Seconds: {times}.", "", *notes, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", help=f"default: {MODEL}")
    parser.add_argument("--c4", help="a local file of C4, as c4-train.00000-of-01024.json.gz")
    parser.add_argument("--wikitext", help="a folder of WikiText-2 for perplexity")
    parser.add_argument("--recipe", action="append", help=f"default: {' '.join(RECIPES)}")
    parser.add_argument("--task", action="append", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.recipe, options.task = options.recipe or RECIPES, options.task or TASKS
    lines = ["# Calibration sources", "", f"    python {shlex.join(sys.argv)}", ""]
    lines += [
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.",
        "",
    ]
    if not options.c4:
        lines += ["C4 was left out: no file was given.", ""]
    for model in options.model or [MODEL]:
        started = time.perf_counter()
        result = run_study(
            study_of(model, options), out=options.out / model.strip("/").replace("/", "_"), observer=Lines()
        )
        lines += section(result, time.perf_counter() - started)
    sys.stdout.write("\n".join(lines))
    if options.write:
        RESULTS.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
