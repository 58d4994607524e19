"""`kick export`: a run's numbers for papers, programs and experiment trackers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmkick.cli.common import RESULTS, app, check_file_target, print_line
from llmkick.cli.options import OUTPUT
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.report.run_folder import Run

Format = Literal["markdown", "latex", "csv", "parquet", "card", "mlflow", "wandb"]

TRACKERS = ("mlflow", "wandb")


@app.command(rich_help_panel=RESULTS)
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    to: Annotated[Format, typer.Option("--to", help="Format or tracker.", show_default=False, rich_help_panel=OUTPUT)],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write; csv: folder. Default for markdown, latex and card: the terminal.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    uri: Annotated[
        str | None,
        typer.Option(help="mlflow, wandb: the server; mlflow also file:./mlruns.", rich_help_panel=OUTPUT),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="mlflow: the experiment; wandb: the project. Default: llmkick.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="card: the recipe or model, if the run has several.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Export a run: a table for a paper, every record as parquet, a card, or the results to MLflow or Weights & Biases.

    The numbers are those of the report. MLflow and Weights & Biases need `llmkick[mlflow]` and `llmkick[wandb]`.

    Examples:

        kick export runs/quickstart --to latex -o table.tex

        kick export runs/quickstart --to parquet -o records.parquet

        kick export runs/quickstart --to card --recipe rtn@8b -o card.md

        kick export runs/quickstart --to mlflow --uri file:./mlruns
    """
    from llmkick.report.run_folder import opened_run

    if to in TRACKERS and target is not None:
        raise ConfigError(f"--out is for files; {to} takes --uri and --project")
    for name, value in (("--uri", uri), ("--project", project)):
        if to not in TRACKERS and value is not None:
            raise ConfigError(f"{name} is for mlflow and wandb")
    if to != "card" and recipe is not None:
        raise ConfigError("--recipe is for card")
    if target is not None and to != "csv":
        check_file_target(target)
    with opened_run(folder) as run:
        if to == "card":
            _export_card(run, target, recipe)
        else:
            _export(run, to, target, uri=uri, project=project)


def _export_card(run: Run, target: Path | None, recipe: str | None) -> None:
    from llmkick.report import card

    if target is None:
        typer.echo(card.card(run.result, recipe), nl=False)
    else:
        print_line(f"card: {card.write_card(run.result, target, recipe)}")


def _export(run: Run, to: Format, target: Path | None, *, uri: str | None, project: str | None) -> None:
    from llmkick.files import write_text
    from llmkick.report import exports, tables, tracking

    if to in TRACKERS:
        log = tracking.log_to_mlflow if to == "mlflow" else tracking.log_to_wandb
        print_line(f"{to}: run {log(run.result, uri=uri, project=project or tracking.DEFAULT_PROJECT)}")
    elif to == "parquet":
        path = target or run.result.folder / "records.parquet"
        count = exports.write_parquet(run, path)
        print_line(f"{count:,} records: {path}")
    elif to == "csv":
        paths = tables.write_tables(run.result, target or run.result.folder)
        print_line(f"{len(paths)} tables: {paths[0].parent}")
    else:
        text = exports.markdown(run.result) if to == "markdown" else exports.latex(run.result)
        if target is None:
            typer.echo(text, nl=False)
        else:
            print_line(f"table: {write_text(target, text)}")
