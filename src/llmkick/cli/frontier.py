"""`kick frontier`: the strongest compression that still matches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, err, out, print_line, print_notes
from llmkick.cli.options import (
    CALIBRATION,
    CHECKPOINT_HELP,
    STUDY,
    Alpha,
    CalibrationSource,
    Device,
    DtypeOption,
    Length,
    Limit,
    Margin,
    ProtocolOption,
    Quiet,
    ResultsFolder,
    Sequences,
    Source,
    TaskNames,
)

Methods = Annotated[
    list[str],
    typer.Option(
        "--method",
        "-m",
        help="Method to search: wanda, wanda@n:m, gptq, or wanda@0.1,0.2,… May be repeated.",
        rich_help_panel=STUDY,
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        help="Calibration seed. May be repeated: the first searches, all confirm. Default: 0.",
        rich_help_panel=CALIBRATION,
    ),
]
QuickSearch = Annotated[
    bool,
    typer.Option("--quick-search", help="Search without propagation, confirm with it.", rich_help_panel=CALIBRATION),
]
Perplexity = Annotated[
    bool, typer.Option(help="Also find the strongest level by perplexity, for comparison.", rich_help_panel=STUDY)
]


@app.command(rich_help_panel=STUDIES)
def frontier(
    model: Annotated[str, typer.Argument(help=CHECKPOINT_HELP)],
    method: Methods,
    task: TaskNames,
    folder: ResultsFolder,
    limit: Limit = None,
    seed: Seeds = None,
    quick_search: QuickSearch = False,
    perplexity: Perplexity = True,
    calibration: CalibrationSource = "auto",
    sequences: Sequences = 32,
    length: Length = 512,
    margin: Margin = 0.05,
    alpha: Alpha = 0.05,
    source: Source = "pocket",
    protocol: ProtocolOption = "strict",
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Find how far a model can be compressed: the strongest level of each method that still matches.

    Levels are searched by bisection. Each level is asked only until its verdict is known, and the strongest matching
    level is confirmed on every item. The same command resumes a search that was stopped.

    Examples:

        kick frontier smollm2-135m-instruct --method wanda --method gptq --task factoid_qa --out runs/frontier

        kick frontier ./my-model -m wanda@n:m -m wanda@0.1,0.2,0.3,0.4,0.5 -t multiple_choice --source data/mmlu -o far
    """
    from llmkick.study.spec.sections import task_specs

    tasks = task_specs(task, source=source, protocol=protocol, limit=limit)
    if perplexity and not any(name.startswith("perplexity") for name in task):
        tasks += task_specs(["perplexity"], protocol=protocol)
    study = {
        "name": folder.name, "model": model, "tasks": tasks, "margin": margin, "alpha": alpha,
        "calibration": {"source": calibration, "sequences": sequences, "length": length},
        "dtype": dtype, "device": device,
    }  # fmt: skip
    _search_and_report(study, method, folder, seeds=seed or [0], propagate=not quick_search, quiet=quiet)


def _search_and_report(
    study: Mapping[str, object], methods: list[str], folder: Path, *, seeds: list[int], propagate: bool, quiet: bool
) -> None:
    from llmkick.cli.progress import TerminalProgress
    from llmkick.report.figures.frontier import frontier_table, write_frontier_figure
    from llmkick.study.frontier.search import run_frontier

    with TerminalProgress(err, quiet=quiet, words=words_of("frontier")) as progress:
        result = run_frontier(study, methods, out=folder, seeds=seeds, search_propagate=propagate, observer=progress)
    pages = write_frontier_figure(result)
    out.print(frontier_table(result))
    print_notes(result.warnings)
    print_line(f"figure: {pages[-1]}")
