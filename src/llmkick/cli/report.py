"""`kick report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import app, out


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="a run's folder")],
) -> None:
    """Write report.html, tables and figures of a finished run again.

    Example:

        kick report runs/quickstart
    """
    from llmkick.report.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.results import read_results

    page = write_report(folder)
    out.print(verdict_table(read_results(folder)))
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
