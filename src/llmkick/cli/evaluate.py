"""`kick eval`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from llmkick.cli.common import (
    MODEL_HELP,
    Concurrency,
    Device,
    Dtype,
    Quiet,
    Timeout,
    app,
    check_file_target,
    err,
    out,
    print_notes,
)
from llmkick.errors import ConfigError


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    task: Annotated[list[str], typer.Option("--task", "-t", help="see `kick tasks`; may be repeated")],
    limit: Annotated[int | None, typer.Option(help="items a task (a stratified sample)")] = None,
    seed: Annotated[int, typer.Option(help="seed of the sample")] = 0,
    source: Annotated[str, typer.Option(help="pocket, hub or a folder of official files")] = "pocket",
    protocol: Annotated[str, typer.Option(help="strict or paper")] = "strict",
    by: Annotated[str | None, typer.Option(help="also by group: cluster, discipline, popularity, …")] = None,
    of: Annotated[str | None, typer.Option(help="with --by: this number, e.g. unique_tokens, for the score")] = None,
    records_file: Annotated[Path | None, typer.Option("--records", help="write every record here (JSON lines)")] = None,
    prompting: Annotated[str, typer.Option(help="auto, chat or raw")] = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    timeout: Timeout = 120.0,
    concurrency: Concurrency = 8,
    quiet: Quiet = False,
) -> None:
    """Score one model on tasks.

    Examples:

        kick eval smollm2-135m-instruct --task factoid_qa --limit 100

        kick eval ./my-model -t context_qa:open -t context_qa:closed --records answers.jsonl

        kick eval ./my-model -t multiple_choice --source data/mmlu --by discipline

        kick eval openai:http://127.0.0.1:8000/v1#my-model -t factoid_qa --concurrency 16

        kick eval ./my-model -t instruction --by category --of unique_tokens
    """
    from llmkick.cli.progress import Watcher
    from llmkick.files import write_text_atomically
    from llmkick.models.server.server import ServerSettings, open_model
    from llmkick.tasks.evaluate import evaluate_in_batches, refuse_unanswerable
    from llmkick.tasks.prompting import PROMPTINGS
    from llmkick.tasks.registry import get_task
    from llmkick.tasks.task import summary_value

    tasks = [get_task(name, source=source, protocol=protocol, limit=limit, seed=seed) for name in task]
    if prompting not in PROMPTINGS:
        raise ConfigError(f"unknown prompting {prompting!r}; choose from: {', '.join(PROMPTINGS)}")
    if of is not None and by is None:
        raise ConfigError("--of says what to average by group; give --by too, for example --by category")
    if records_file is not None:
        check_file_target(records_file)
    settings = ServerSettings(timeout=timeout, concurrency=concurrency)
    table = Table("task", "metric", "score", "items", "unscored", "truncated")
    lines: list[str] = []
    notes: list[str] = []
    groups = Table("task", by or "", of or "score", "items")
    with Watcher(err, quiet=quiet) as watcher:
        watcher.stage(f"loading {model}", 1)
        loaded = open_model(model, dtype=dtype, device=device, server=settings)
        for one in tasks:
            refuse_unanswerable(loaded, one, prompting=prompting)
        notes += loaded.notes
        for one in tasks:
            count = len(one.items(loaded))
            watcher.stage(one.name, count)
            records = []
            for batch in evaluate_in_batches(loaded, one, prompting=prompting):
                records += batch
                watcher.advance(len(records))
            scored = [record for record in records if record.score is not None]
            value = summary_value(one.metric, records)
            table.add_row(
                one.name,
                one.metric,
                "–" if value is None else f"{value:.4g}",
                str(len(scored)),
                str(len(records) - len(scored)),
                str(sum(record.truncated for record in records)),
            )
            notes += [f"{one.name}: {note}" for note in one.notes]
            chosen = {str(record.details["chosen_by"]) for record in records if "chosen_by" in record.details}
            notes += [f"{one.name}: options were chosen by {way}" for way in sorted(chosen)]
            if by is not None:
                _add_groups(groups, one.name, records, by, of)
            lines += [json.dumps({"task": one.name, **asdict(record)}, ensure_ascii=False) for record in records]
    if records_file is not None:
        write_text_atomically(records_file, "\n".join(lines) + "\n")
    out.print(table)
    if by is not None:
        out.print(groups)
    print_notes(notes)


def _add_groups(table: Table, task: str, records: list[Any], by: str, of: str | None) -> None:
    from llmkick.tasks.grouping import group_scores

    grouped = group_scores(records, by, of=of)
    if grouped is not None:
        for name, (mean, count) in grouped.groups.items():
            table.add_row(task, name, f"{mean:.4g}", str(count))
        scored = sum(count for _, count in grouped.groups.values())
        table.add_row(task, "mean over items (micro)", f"{grouped.micro:.4g}", str(scored))
        table.add_row(task, "mean over groups (macro)", f"{grouped.macro:.4g}", str(scored))
