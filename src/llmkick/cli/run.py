"""`kick run`: compress, ask, compare, report."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, err, given, out, print_line, print_notes, study_of
from llmkick.cli.options import (
    CALIBRATION,
    OUTPUT,
    PLACE,
    STUDY,
    CalibrationSource,
    Device,
    DtypeOption,
    Json,
    Length,
    Limit,
    Margin,
    ProtocolOption,
    Quiet,
    Sequences,
    Source,
)
from llmkick.errors import ConfigError, KickError
from llmkick.study.spec.choices import Correction, ExecutorName, Stop

if TYPE_CHECKING:
    from llmkick.study.announcement import Words
    from llmkick.study.results.results import StudyResult
    from llmkick.study.running.executor import Executor
    from llmkick.study.spec.study import Study

# Options that say how a study is run, not what it is; they may stand beside a study file.
BESIDE_A_FILE = ("study_file", "folder", "plan", "quiet", "as_json", "executor", "address", "workers", "artifacts")

Model = Annotated[str | None, typer.Option("--model", "-m", help="Model to compress.", rich_help_panel=STUDY)]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", "-r", help="Recipe, see `kick methods`. May be repeated.", rich_help_panel=STUDY),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="Task to ask, see `kick tasks`. May be repeated.", rich_help_panel=STUDY),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="Calibration seed. May be repeated. Default: 0.", rich_help_panel=CALIBRATION),
]
StopOption = Annotated[
    Stop,
    typer.Option("--stop", help="decided: stop asking as soon as the verdict is known.", rich_help_panel=STUDY),
]
CorrectionOption = Annotated[
    Correction,
    typer.Option("--correction", help="Correction for testing several recipes.", rich_help_panel=STUDY),
]
Folder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results. Resumed if it holds a run.", rich_help_panel=OUTPUT),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Print what the run would take, and run nothing.", rich_help_panel=OUTPUT)
]
ExecutorOption = Annotated[
    ExecutorName,
    typer.Option("--executor", help="This machine, or the workers of a Ray cluster.", rich_help_panel=PLACE),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray: HOST:PORT of the head of the cluster, or auto for one on this machine.", rich_help_panel=PLACE
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Ray: number of workers at most. Default: as many as there is room for.", rich_help_panel=PLACE),
]
Artifacts = Annotated[
    str | None,
    typer.Option(help="Folder or URL (s3://…) through which machines share compressed models.", rich_help_panel=PLACE),
]


@app.command(rich_help_panel=STUDIES)
def run(
    context: typer.Context,
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="Study file.")] = None,
    model: Model = None,
    recipe: Recipes = None,
    task: Tasks = None,
    limit: Limit = None,
    seed: Seeds = None,
    calibration: CalibrationSource = "auto",
    sequences: Sequences = 32,
    length: Length = 512,
    margin: Margin = 0.05,
    stop: StopOption = "never",
    correction: CorrectionOption = "none",
    source: Source = "pocket",
    protocol: ProtocolOption = "strict",
    executor: ExecutorOption = "local",
    address: Address = None,
    workers: Workers = None,
    artifacts: Artifacts = None,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    folder: Folder = None,
    plan: Plan = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a study: compress, ask, compare, and write a report. The same command resumes a run that was stopped.

    A study file takes the place of the options under Study and Calibration, and of --dtype and --device.

    Examples:

        kick run examples/quickstart.toml --out runs/quickstart

        kick run -m smollm2-135m-instruct -r wanda@0.25 -r wanda@0.5 -t factoid_qa --limit 100 -o runs/mine

        kick run sweep.toml -o runs/sweep --executor ray --address head:6379 --artifacts s3://bucket/models
    """
    from llmkick.study.run import make_executor
    from llmkick.study.spec.sections import task_specs

    if folder is None and not plan:
        raise ConfigError("where should the results go? give --out DIR")
    if study_file is not None:
        study = _study_from_file(study_file, [name for name in given(context) if name not in BESIDE_A_FILE])
    elif model and recipe and task:
        study = study_of(
            folder, "study", model=model, recipes=recipe, seeds=seed or [0], dtype=dtype, device=device,
            tasks=task_specs(task, source=source, protocol=protocol, limit=limit), margin=margin, stop=stop,
            calibration={"source": calibration, "sequences": sequences, "length": length}, correction=correction,
        )  # fmt: skip
    else:
        raise ConfigError("give a study file, or all of --model, --recipe and --task")
    if folder is None or plan:
        _print_plan(study, as_json=as_json)
        return
    workplace = make_executor(executor, address=address, workers=workers, artifacts=artifacts)
    words = None if as_json else words_of("run") if study_file is None else str
    _run(study, folder, workplace, words=words, quiet=quiet)


def _study_from_file(path: Path, options: list[str]) -> Study:
    """The study of a file; ConfigError if options that belong in it were typed too."""
    from llmkick.study.spec.study import load_study

    if options:
        typed = ", ".join(f"--{name}" for name in options)
        raise ConfigError(f"give a study file or options, not both: write {typed} into {path}")
    return load_study(path)


def _print_plan(study: Study, *, as_json: bool) -> None:
    from llmkick.study.plan import plan_study

    plan = plan_study(study)
    if as_json:
        rows = [asdict(row) for row in plan.tasks]
        out.print_json(data={"cells": plan.cells, "tasks": rows, "notes": list(plan.lines())})
        return
    table = Table("task", "items", "requests", "tokens a model", "hours a model")
    for row in plan.tasks:
        counts = ("?" if count is None else f"{count:,}" for count in (row.items, row.requests, row.tokens))
        table.add_row(row.name, *counts, "?" if row.hours is None else f"{row.hours:.2g}")
    out.print(table)
    for line in plan.lines():
        print_line(line)


def _run(study: Study, folder: Path, executor: Executor, *, words: Words | None, quiet: bool) -> None:
    """Run a study, with advice in these words for a person, or as events for a program if there are none."""
    if words is None:
        _run_as_json(study, folder, executor, quiet=quiet)
    else:
        _run_and_report(study, folder, executor, words=words, quiet=quiet)


def _run_as_json(study: Study, folder: Path, executor: Executor, *, quiet: bool) -> None:
    """Run a study and print its events as JSON lines; the last line holds the results."""
    from llmkick.cli.progress import JsonProgress
    from llmkick.report.page.page import write_report
    from llmkick.study.progress import Silent
    from llmkick.study.run import run_study

    if not quiet:
        _announce_judge(study)
    events = JsonProgress(sys.stdout, reports=True)
    with contextlib.nullcontext() if quiet else events:
        result = run_study(study, out=folder, observer=Silent() if quiet else events, executor=executor)
    page = write_report(folder)
    results = result.model_dump(mode="json", include={"comparisons", "overall", "returned", "failures"})
    events.emit("finished", report=str(page), warnings=list(result.warnings), **results)
    _refuse_failures(result)


def _run_and_report(study: Study, folder: Path, executor: Executor, *, words: Words, quiet: bool) -> None:
    """Run a study, write its report, and print the verdicts."""
    from llmkick.cli.progress import TerminalProgress, spinner
    from llmkick.report.came_back import came_back_table
    from llmkick.report.page.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.run import run_study

    if not quiet:
        _announce_judge(study)
    with TerminalProgress(err, quiet=quiet, reports=True, words=words) as progress:
        result = run_study(study, out=folder, observer=progress, executor=executor)
    with spinner(err, "writing the report", quiet=quiet):
        page = write_report(folder)
    out.print(verdict_table(result))
    if result.returned:
        out.print(came_back_table(result))
    print_notes(result.warnings)
    if result.judge is not None:
        used = f"{result.judge.prompt_tokens:,} tokens asked, {result.judge.completion_tokens:,} answered"
        out.print(f"judge: {result.judge.judgements:,} judgements, {used}", markup=False, highlight=False)
    print_line(f"report: {page}")
    _refuse_failures(result)


def _announce_judge(study: Study) -> None:
    """Say what the judge of a study will be asked at most, before any of it is spent."""
    from llmkick.study.cells import variants_of
    from llmkick.study.judging.questions import estimate

    if study.judge is not None:
        models = sum(1 for _ in variants_of(study))
        err.print(estimate(study, models=models).line(), markup=False, highlight=False, soft_wrap=True)


def _refuse_failures(result: StudyResult) -> None:
    if result.failures:
        raise KickError(
            f"{len(result.failures)} cells were given up (see the notes above); the same command tries them again"
        )
