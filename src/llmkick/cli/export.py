"""`kick export`: a run's numbers for papers, programs and trackers of experiments."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkick.cli.common import app, check_file_target, out
from llmkick.errors import ConfigError


class Form(StrEnum):
    """What a run can be exported to."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    parquet = "parquet"
    mlflow = "mlflow"
    wandb = "wandb"


TRACKERS = (Form.mlflow, Form.wandb)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder")],
    to: Annotated[
        Form, typer.Option("--to", help="markdown, latex, csv, parquet, mlflow or wandb", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="file to write (csv: folder); markdown and latex go to the terminal without it"
        ),
    ] = None,
    uri: Annotated[
        str | None, typer.Option(help="mlflow, wandb: the server, or for mlflow a folder as file:./mlruns")
    ] = None,
    project: Annotated[str, typer.Option(help="mlflow: the experiment; wandb: the project")] = "llmkick",
) -> None:
    """Export a run: a table for a paper, every record as parquet, or the results to MLflow or Weights & Biases.

    The numbers are those of the report. MLflow and Weights & Biases need `llmkick[mlflow]` and `llmkick[wandb]`.

    Examples:

        kick export runs/quickstart --to latex -o table.tex

        kick export runs/quickstart --to parquet -o records.parquet

        kick export runs/quickstart --to mlflow --uri file:./mlruns
    """
    from llmkick.report.run_folder import opened_run

    if to in TRACKERS and target is not None:
        raise ConfigError(f"--out is for files; {to} takes --uri and --project")
    if to not in TRACKERS and uri is not None:
        raise ConfigError("--uri is for mlflow and wandb")
    if target is not None and to is not Form.csv:
        check_file_target(target)
    with opened_run(folder) as run:
        _export(run, to, target, uri=uri, project=project)


def _export(run: Any, to: Form, target: Path | None, *, uri: str | None, project: str) -> None:
    from llmkick.files import write_text
    from llmkick.report import exports, tables, tracking

    if to in TRACKERS:
        log = tracking.log_to_mlflow if to is Form.mlflow else tracking.log_to_wandb
        out.print(
            f"{to}: run {log(run.result, uri=uri, project=project)}", markup=False, highlight=False, soft_wrap=True
        )
    elif to is Form.parquet:
        path = target or run.result.folder / "records.parquet"
        count = exports.write_parquet(run, path)
        out.print(f"{count:,} records: {path}", markup=False, highlight=False, soft_wrap=True)
    elif to is Form.csv:
        paths = tables.write_tables(run.result, target or run.result.folder)
        out.print(f"{len(paths)} tables: {paths[0].parent}", markup=False, highlight=False, soft_wrap=True)
    else:
        text = exports.markdown(run.result) if to is Form.markdown else exports.latex(run.result)
        if target is None:
            typer.echo(text, nl=False)
        else:
            out.print(f"table: {write_text(target, text)}", markup=False, highlight=False, soft_wrap=True)
