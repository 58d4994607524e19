"""`kick report`: the page of a run, or of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import RESULTS, app, check_file_target, out, print_line, print_notes
from llmkick.cli.options import OUTPUT, Json
from llmkick.errors import ConfigError

STUDIES_PAGE = Path("studies.html")


@app.command(rich_help_panel=RESULTS)
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folder of a run; several are compared.", show_default=False)
    ],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"Several runs: the page to write. Default: {STUDIES_PAGE}.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report, tables and figures of a run again, or one page that compares several runs.

    The page of an unfinished or damaged run shows what there is and says what is missing. The page of several runs
    pairs only what is comparable; it says what is not, and why.

    Examples:

        kick report runs/quickstart

        kick report runs/seed-0 runs/seed-1 --out seeds.html
    """
    if len(folders) == 1:
        if target is not None:
            raise ConfigError("--out is for the page of several runs; the report of one lies in its folder")
        _report_run(folders[0], as_json=as_json)
        return
    from llmkick.report.several.page import write_studies

    check_file_target(target or STUDIES_PAGE)
    page = write_studies(folders, target or STUDIES_PAGE)
    if as_json:
        out.print_json(data={"report": str(page)})
    else:
        print_line(f"report: {page}")


def _report_run(folder: Path, *, as_json: bool) -> None:
    from llmkick.report.came_back import came_back_table
    from llmkick.report.page.page import write_report_of
    from llmkick.report.run_folder import opened_run
    from llmkick.report.tables import verdict_table

    with opened_run(folder) as run:
        page, result, missing = write_report_of(run), run.result, list(run.missing)
    if as_json:
        results = result.model_dump(mode="json", include={"comparisons", "overall", "returned"})
        out.print_json(data={"report": str(page), "missing": missing, "warnings": list(result.warnings), **results})
        return
    out.print(verdict_table(result))
    if result.returned:
        out.print(came_back_table(result))
    print_notes(missing)
    print_line(f"report: {page}")
