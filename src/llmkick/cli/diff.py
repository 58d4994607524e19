"""`kick diff`: two runs, item by item."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from llmkick.cli.common import RESULTS, app, out, print_notes
from llmkick.cli.options import Json
from llmkick.errors import DataError

if TYPE_CHECKING:
    from llmkick.report.several.studies import Difference, Paired


@app.command(rich_help_panel=RESULTS)
def diff(
    first: Annotated[Path, typer.Argument(metavar="DIR1", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="Folder of the run to compare it with.")],
    as_json: Json = False,
) -> None:
    """Compare two runs item by item: scores, their difference with its interval, and verdicts that changed.

    Only what both runs asked in the same way is paired; the rest is listed with the reason. It is an error if nothing
    can be paired.

    Example:

        kick diff runs/before runs/after
    """
    from llmkick.report.run_folder import opened_run
    from llmkick.report.several.studies import labels, pair

    names = labels([first, second])
    with opened_run(first) as first_run, opened_run(second) as second_run:
        paired = pair(first_run, second_run, names=names)
    if not paired.differences:
        reasons = "; ".join(f"{refusal.what}: {refusal.reason}" for refusal in paired.refusals)
        raise DataError(f"nothing of {names[0]} and {names[1]} can be paired: {reasons}")
    if as_json:
        out.print_json(data=asdict(paired))
        return
    out.print(_table(paired))
    print_notes([*paired.notes, *(f"not paired: {refusal.what}: {refusal.reason}" for refusal in paired.refusals)])


def _table(paired: Paired) -> Table:
    from llmkick.report import formatting

    table = Table(
        "recipe", "task", "n", paired.first, paired.second, "difference", "lost", "gained", "verdict",
        title=f"{paired.first} → {paired.second}", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for entry in paired.differences:
        is_perplexity = entry.gained == entry.lost == 0 and (entry.first or 0) > 1
        metric = "perplexity" if is_perplexity else ""
        table.add_row(
            entry.recipe, entry.task, str(entry.n),
            formatting.score(entry.first, metric), formatting.score(entry.second, metric),
            "identical" if entry.identical else formatting.difference(entry.difference, entry.interval),
            f"{entry.lost:g}", f"{entry.gained:g}", _verdicts(entry),
        )  # fmt: skip
    return table


def _verdicts(entry: Difference) -> str:
    if entry.first_verdict == entry.second_verdict:
        return entry.first_verdict or ""
    return f"{entry.first_verdict or '–'} → {entry.second_verdict or '–'}"
