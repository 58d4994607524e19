"""`kick import-lm-eval`: verdicts from samples that lm-eval (lm-evaluation-harness) wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from llmkick.cli.common import RESULTS, app, check_file_target, out, print_line, print_notes
from llmkick.cli.options import OUTPUT, STUDY, Alpha, Margin

if TYPE_CHECKING:
    from llmkick.lm_eval.importing import ImportedTask

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Metric to compare. May be repeated: the first that a task has.", rich_help_panel=STUDY
    ),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", "-t", help="Compare only these tasks.", rich_help_panel=STUDY)
]
Filters = Annotated[
    list[str] | None, typer.Option("--filter", help="Compare only these lm-eval filters.", rich_help_panel=STUDY)
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Field of drawn groups (passages, stories), or none. Default: cluster.", rich_help_panel=STUDY),
]
Strata = Annotated[
    str | None,
    typer.Option(help="Field of fixed groups, or none. Default: subject, category.", rich_help_panel=STUDY),
]
Chance = Annotated[
    float | None,
    typer.Option(help="Score of guessing. Default: 1 / number of options.", rich_help_panel=STUDY),
]
Highest = Annotated[float, typer.Option(help="Best possible score of a document.", rich_help_panel=STUDY)]
Target = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="A .json or .csv file, or a folder for both and all scores.", rich_help_panel=OUTPUT
    ),
]


@app.command("import-lm-eval", rich_help_panel=RESULTS)
def import_lm_eval(
    dense: Annotated[Path, typer.Argument(help="Dense model: samples_TASK_DATE.jsonl, or the folder it lies in.")],
    compressed: Annotated[Path, typer.Argument(help="The same of the compressed model.")],
    metric: Metrics = None,
    task: Tasks = None,
    filter_: Filters = None,
    cluster: Cluster = None,
    strata: Strata = None,
    chance: Chance = None,
    highest: Highest = 1.0,
    margin: Margin = 0.05,
    alpha: Alpha = 0.05,
    target: Target = None,
) -> None:
    """Give verdicts on two --log_samples outputs of lm-eval, on any of its tasks, paired by document.

    Examples:

        kick import-lm-eval out/dense out/pruned

        kick import-lm-eval out/dense out/pruned --metric exact_match --metric acc_norm --out verdicts.csv
    """
    from llmkick.lm_eval import importing

    if target is not None:
        check_file_target(target / "verdicts.csv" if importing.is_folder(target) else target)
    imported = importing.import_lm_eval(
        dense, compressed, metrics=metric or (), tasks=task or (), filters=filter_ or (), cluster=cluster,
        strata=strata, chance=chance, highest=highest, margin=margin, alpha=alpha,
    )  # fmt: skip
    _print_verdicts(imported)
    if target is not None:
        for path in importing.write_imported(imported, target):
            print_line(f"written: {path}")


def _print_verdicts(imported: list[ImportedTask]) -> None:
    from llmkick.report import formatting

    table = Table(
        Column("task", overflow="fold"),
        "metric",
        "items",
        "dense → compressed",
        f"loss ({formatting.GAIN_SIGN})",
        "verdict",
    )
    labels_by_note: dict[str, list[str]] = {}
    for task in imported:
        comparison = task.comparison
        mark = formatting.mark(comparison.verdict)
        table.add_row(
            Text(task.label),
            Text(task.metric),
            str(comparison.n),
            f"{formatting.score(comparison.dense)} → {formatting.score(comparison.compressed)}",
            str(formatting.loss(comparison)),
            Text(f"{mark.symbol} {comparison.verdict}", style=mark.style),
        )
        for note in task.notes:
            labels_by_note.setdefault(note, []).append(task.label)
    out.print(table)
    for note, labels in labels_by_note.items():
        print_notes([f"{', '.join(labels) if len(labels) < len(imported) else 'every task'}: {note}"])
