"""`kick report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import Json, app, check_file_target, out, print_notes
from llmkick.errors import ConfigError

SEVERAL = Path("studies.html")


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="a run's folder, or several", show_default=False)
    ],
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"of several runs: the page to write [default: {SEVERAL}]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.html, tables and figures of a run again; of several runs, one page that compares them.

    A run that is not finished or damaged gets a page of what there is, which says what is missing. Of several
    studies only what is comparable is paired; the page says what is not, and why.

    Examples:

        kick report runs/quickstart

        kick report runs/seed-0 runs/seed-1 --out seeds.html
    """
    if len(folders) == 1:
        if target is not None:
            raise ConfigError("--out is for the page of several runs; the report of one lies in its folder")
        _one(folders[0], as_json=as_json)
        return
    from llmkick.report.several.page import write_studies

    check_file_target(target or SEVERAL)
    page = write_studies(folders, target or SEVERAL)
    if as_json:
        out.print_json(data={"report": str(page)})
    else:
        out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def _one(folder: Path, *, as_json: bool) -> None:
    from llmkick.report.page.page import write_report
    from llmkick.report.run_folder import opened_run
    from llmkick.report.tables import verdict_table

    page = write_report(folder)
    with opened_run(folder) as run:
        result, missing = run.result, list(run.missing)
    if as_json:
        found = result.model_dump(mode="json", include={"comparisons", "overall"})
        out.print_json(data={"report": str(page), "missing": missing, "warnings": list(result.warnings), **found})
        return
    out.print(verdict_table(result))
    print_notes(missing)
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
