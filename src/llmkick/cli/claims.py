"""`kick claims`: which claims of the paper hold in one run or in several."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import RESULTS, app, out, print_line, print_notes
from llmkick.cli.options import Json


@app.command(rich_help_panel=RESULTS)
def claims(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folder of a run; several are read together.")],
    claim: Annotated[
        int | None, typer.Option("--claim", "-c", min=1, max=11, help="Show one claim with its rule and all numbers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test the claims of the paper: supported, contradicted, undecided or not asked.

    Several runs are read together: of one model with other tasks or recipes, or of a large and a small model. Runs that
    asked a task in other ways are refused.

    Examples:

        kick claims runs/vicuna-7b

        kick claims runs/vicuna-7b runs/vicuna-13b --claim 5
    """
    from llmkick.report.claims import claim_lines, claims_of, claims_of_run, claims_table
    from llmkick.report.run_folder import opened_run
    from llmkick.report.several.studies import labels

    names = labels(folders)
    with ExitStack() as stack:
        runs = [stack.enter_context(opened_run(folder)) for folder in folders]
        rows = list(claims_of_run(runs[0])) if len(runs) == 1 else claims_of(runs, names)
        missing = [f"{name}: {line}" for name, run in zip(names, runs, strict=True) for line in run.missing]
    rows = [row for row in rows if claim in (None, row.id)]
    if as_json:
        out.print_json(data={"claims": [row.facts for row in rows], "missing": missing})
        return
    if claim is None:
        out.print(claims_table(rows))
    else:
        for line in claim_lines(rows[0]):
            print_line(line)
    print_notes(missing)
