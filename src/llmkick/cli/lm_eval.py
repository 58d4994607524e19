"""`kick export-lm-eval` and `kick import-lm-eval`: to lm-eval (lm-evaluation-harness) and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from llmkick.cli.common import Device, Dtype, app, check_file_target, out, print_notes
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.lm_eval.importing import ImportedTask


@app.command("export-lm-eval")
def export_lm_eval(
    task: Annotated[list[str], typer.Argument(help="factoid_qa, multiple_choice:letter or :cloze, context_qa:…")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="new folder for the task files")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="prompts as this model gets them; else raw text for any model")
    ] = None,
    prompting: Annotated[str, typer.Option(help="auto, chat or raw")] = "auto",
    limit: Annotated[int | None, typer.Option(help="items a task (a stratified sample)")] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample")] = 0,
    source: Annotated[str, typer.Option(help="pocket, hub or a folder of official files")] = "pocket",
    protocol: Annotated[str, typer.Option(help="strict or paper")] = "strict",
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Write tasks as lm-eval task files that give every item the same score.

    Examples:

        kick export-lm-eval factoid_qa multiple_choice:cloze -o lm-eval-tasks

        kick export-lm-eval context_qa:open -m smollm2-135m-instruct --prompting chat -o lm-eval-chat
    """
    from llmkick.lm_eval.exporting import export_tasks
    from llmkick.models.checkpoints.meta_model import load_outline
    from llmkick.tasks.prompting import PROMPTINGS
    from llmkick.tasks.registry import get_task

    if prompting not in PROMPTINGS:
        raise ConfigError(f"unknown prompting {prompting!r}; choose from: {', '.join(PROMPTINGS)}")
    tasks = [get_task(name, source=source, protocol=protocol, limit=limit, seed=seed) for name in task]
    # The tokenizer and the template are enough: no weights are loaded.
    loaded = None if model is None else load_outline(model, dtype=dtype, device=device).model
    export = export_tasks(tasks, folder, model=loaded, prompting=prompting)
    print_notes(list(export.notes))
    out.print(export.command, markup=False, highlight=False, soft_wrap=True)


@app.command("import-lm-eval")
def import_lm_eval(
    dense: Annotated[Path, typer.Argument(help="samples_TASK_DATE.jsonl of the dense model, or the folder it lies in")],
    compressed: Annotated[Path, typer.Argument(help="the same of the compressed model")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="what to compare; repeated, the first that a task has")
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="only these tasks")] = None,
    filter_: Annotated[list[str] | None, typer.Option("--filter", help="only these filters of lm-eval")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="field of the documents that groups them; none: each on its own")
    ] = None,
    chance: Annotated[float | None, typer.Option(help="score of guessing; else one in the number of options")] = None,
    highest: Annotated[float, typer.Option(help="best score that a document can have")] = 1.0,
    margin: Annotated[float, typer.Option(help="largest loss that still matches")] = 0.05,
    alpha: Annotated[float, typer.Option(help="error level of a verdict")] = 0.05,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="a .json or .csv file, or a folder with both and all scores"),
    ] = None,
) -> None:
    """Verdicts from two --log_samples outputs of lm-eval, on any of its tasks, paired by document.

    Examples:

        kick import-lm-eval out/dense out/pruned

        kick import-lm-eval out/dense out/pruned --metric exact_match --metric acc_norm --out verdicts.csv
    """
    from llmkick.lm_eval.importing import import_lm_eval as read
    from llmkick.lm_eval.importing import write_imported

    if target is not None and target.suffix not in ("", ".json", ".csv"):
        raise ConfigError(f"{target}: verdicts are written as .json, as .csv, or into a folder")
    if target is not None:
        check_file_target(target if target.suffix else target / "verdicts.csv")
    found = read(
        dense,
        compressed,
        metrics=metric or (),
        tasks=task or (),
        filters=filter_ or (),
        cluster=cluster,
        chance=chance,
        highest=highest,
        margin=margin,
        alpha=alpha,
    )
    _print_verdicts(found)
    if target is not None:
        for path in write_imported(found, target):
            out.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _print_verdicts(found: list[ImportedTask]) -> None:
    from llmkick.report import formatting

    table = Table(Column("task", overflow="fold"), "metric", "items", "dense → compressed", "loss", "verdict")
    notes: dict[str, list[str]] = {}
    for one in found:
        entry = asdict(one.comparison)
        mark = formatting.mark(entry["verdict"])
        table.add_row(
            Text(one.label),
            Text(one.metric),
            str(entry["n"]),
            f"{formatting.score(entry['dense'])} → {formatting.score(entry['compressed'])}",
            str(formatting.loss(one.comparison)),
            Text(f"{mark.symbol} {entry['verdict']}", style=mark.style),
        )
        for note in one.notes:
            notes.setdefault(note, []).append(one.label)
    out.print(table)
    for note, labels in notes.items():
        print_notes([f"{', '.join(labels) if len(labels) < len(found) else 'every task'}: {note}"])
