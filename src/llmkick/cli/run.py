"""`kick run`: the main job."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from llmkick.cli.common import Device, Dtype, Json, Quiet, app, err, given, out, print_notes
from llmkick.errors import ConfigError, KickError

# What says how a study is run, not what it is.
BESIDE_A_FILE = ("study_file", "folder", "plan", "quiet", "as_json", "executor", "address", "workers", "artifacts")


@app.command()
def run(
    context: typer.Context,
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="the study to run")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder of the results; resumed when it has some")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="instead of a file: the model")] = None,
    recipe: Annotated[list[str] | None, typer.Option("--recipe", "-r", help="instead of a file: recipes")] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="instead of a file: tasks")] = None,
    limit: Annotated[int | None, typer.Option(help="instead of a file: items a task (a stratified sample)")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="instead of a file: calibration seeds")] = None,
    sequences: Annotated[int, typer.Option(help="instead of a file: calibration windows")] = 32,
    length: Annotated[int, typer.Option(help="instead of a file: tokens a calibration window")] = 512,
    margin: Annotated[float, typer.Option(help="instead of a file: largest loss that still matches")] = 0.05,
    stop: Annotated[str, typer.Option(help="instead of a file: never, or decided: ask until the verdict")] = "never",
    correction: Annotated[str, typer.Option(help="instead of a file: none, holm or fixed sequence")] = "none",
    source: Annotated[
        str, typer.Option(help="instead of a file: pocket, hub or a folder of official files")
    ] = "pocket",
    protocol: Annotated[str, typer.Option(help="instead of a file: strict or paper")] = "strict",
    plan: Annotated[bool, typer.Option("--plan", help="print what the run would take, and run nothing")] = False,
    executor: Annotated[str, typer.Option(help="local, or ray: the workers of a Ray cluster")] = "local",
    address: Annotated[
        str | None, typer.Option(help="the Ray cluster: HOST:PORT of its head, or auto for one on this machine")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="at most so many Ray workers; else all that find room")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="folder or URL (s3://…) where machines share compressed models")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a study: compress, ask, compare, and write a report. The same command again resumes.

    Examples:

        kick run examples/quickstart.toml --out runs/quickstart

        kick run -m smollm2-135m-instruct -r wanda@0.25 -r wanda@0.5 -t factoid_qa --limit 100 -o runs/mine

        kick run sweep.toml -o runs/sweep --executor ray --address head:6379 --artifacts s3://bucket/models
    """
    from llmkick.study.spec.study import load_study, make_study

    if folder is None and not plan:
        raise ConfigError("where should the results go? give --out DIR")
    if study_file is not None:
        beside = [name for name in given(context) if name not in BESIDE_A_FILE]
        if beside:
            options = ", ".join(f"--{name}" for name in beside)
            raise ConfigError(f"give a study file or options, not both: write {options} into {study_file}")
        study = load_study(study_file)
    else:
        if not (model and recipe and task):
            raise ConfigError("give a study file, or all of --model, --recipe and --task")
        study = make_study(
            {
                "name": folder.name if folder else "study",
                "model": model,
                "recipes": recipe,
                "tasks": [
                    {
                        "name": name,
                        "source": source,
                        "protocol": protocol,
                        **({} if limit is None else {"limit": limit}),
                    }
                    for name in task
                ],
                "seeds": seed or [0],
                "calibration": {"sequences": sequences, "length": length},
                "margin": margin,
                "stop": stop,
                "correction": correction,
                "dtype": dtype,
                "device": device,
            }
        )
    if plan:
        _print_plan(study, as_json=as_json)
    else:
        assert folder is not None
        where = _executor(executor, address=address, workers=workers, artifacts=artifacts)
        _run_and_report(study, folder, where, quiet=quiet, as_json=as_json)


def _print_plan(study: Any, *, as_json: bool) -> None:
    from llmkick.study.plan import plan_study

    plan = plan_study(study)
    if as_json:
        found = {"cells": plan.cells, "tasks": [asdict(row) for row in plan.tasks], "notes": list(plan.lines())}
        out.print_json(data=found)
        return
    table = Table("task", "items", "requests", "tokens a model", "hours a model")
    for row in plan.tasks:
        table.add_row(
            row.name,
            _number(row.items),
            _number(row.requests),
            _number(row.tokens),
            "?" if row.hours is None else f"{row.hours:.2g}",
        )
    out.print(table)
    for line in plan.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _executor(name: str, *, address: str | None, workers: int | None, artifacts: str | None) -> Any:
    from llmkick.study.run import make_executor

    return make_executor(name, address=address, workers=workers, artifacts=artifacts)


def _run_and_report(study: Any, folder: Path, executor: Any, *, quiet: bool, as_json: bool) -> None:
    from llmkick.cli.progress import JsonLines, Watcher, working
    from llmkick.report.page.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.cells import variants_of
    from llmkick.study.judging.questions import estimate
    from llmkick.study.progress import Silent
    from llmkick.study.run import run_study

    if study.judge is not None and not quiet:
        models = sum(1 for _ in variants_of(study))
        err.print(estimate(study, models=models).line(), markup=False, highlight=False, soft_wrap=True)
    if as_json:
        events = JsonLines(sys.stdout)
        result = run_study(study, out=folder, observer=Silent() if quiet else events, executor=executor)
        page = write_report(folder)
        found = result.model_dump(mode="json", include={"comparisons", "overall", "failures"})
        events.emit("finished", report=str(page), warnings=list(result.warnings), **found)
        _refuse_failures(result)
        return
    with Watcher(err, quiet=quiet) as watcher:
        result = run_study(study, out=folder, observer=watcher, executor=executor)
    with working(err, "writing the report", quiet=quiet):
        page = write_report(folder)
    out.print(verdict_table(result))
    print_notes(list(result.warnings))
    if result.judge is not None:
        used = f"{result.judge.prompt_tokens:,} tokens asked, {result.judge.completion_tokens:,} answered"
        out.print(f"judge: {result.judge.judgements:,} judgements, {used}", markup=False, highlight=False)
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    _refuse_failures(result)


def _refuse_failures(result: Any) -> None:
    if result.failures:
        raise KickError(
            f"{len(result.failures)} cells were given up (see the notes above); the same command tries them again"
        )
