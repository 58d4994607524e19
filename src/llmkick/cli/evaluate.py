"""`kick eval`: scores of one model."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, check_file_target, err, out, print_notes
from llmkick.cli.options import (
    MODEL_HELP,
    OUTPUT,
    Concurrency,
    Device,
    DtypeOption,
    Limit,
    PromptingOption,
    ProtocolOption,
    Quiet,
    SampleSeed,
    Source,
    TaskNames,
    ThinkingOption,
    Timeout,
)
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.cli.progress import TerminalProgress
    from llmkick.models.language_model import LanguageModel
    from llmkick.study.forecast import Forecast
    from llmkick.tasks.task import Record, Task

    Answered = Sequence[tuple[Task, Sequence[Record]]]

By = Annotated[
    str | None,
    typer.Option(help="Average by group too: cluster, discipline, popularity, …", rich_help_panel=OUTPUT),
]
Of = Annotated[
    str | None,
    typer.Option(help="With --by: average this number, e.g. unique_tokens, not the score.", rich_help_panel=OUTPUT),
]
RecordsFile = Annotated[
    Path | None,
    typer.Option("--records", help="File for every record, as JSON lines.", rich_help_panel=OUTPUT),
]


@app.command("eval", rich_help_panel=STUDIES)
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    task: TaskNames,
    limit: Limit = None,
    seed: SampleSeed = 0,
    source: Source = "pocket",
    protocol: ProtocolOption = "strict",
    by: By = None,
    of: Of = None,
    records_file: RecordsFile = None,
    prompting: PromptingOption = "auto",
    thinking: ThinkingOption = "off",
    dtype: DtypeOption = "auto",
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
    from llmkick.cli.progress import TerminalProgress
    from llmkick.models.server.open_model import open_model
    from llmkick.models.server.settings import ServerSettings
    from llmkick.study.spec.sections import task_specs
    from llmkick.tasks.evaluate import refuse_unanswerable

    specs = task_specs(task, source=source, protocol=protocol, limit=limit, seed=seed)
    tasks = [spec.make() for spec in specs]
    if of is not None and by is None:
        raise ConfigError("--of says what to average by group; give --by too, for example --by category")
    if records_file is not None:
        check_file_target(records_file)
    settings = ServerSettings(timeout=timeout, concurrency=concurrency, thinking=thinking)
    with TerminalProgress(err, quiet=quiet, words=words_of("eval")) as progress:
        progress.stage(f"loading {model}", 1)
        loaded = open_model(model, dtype=dtype, device=device, server=settings)
        for selected in tasks:
            refuse_unanswerable(loaded, selected, prompting=prompting)
        answered = _answered(loaded, tasks, prompting, progress, by)
    notes = list(loaded.notes)
    if records_file is not None:
        _write_records(records_file, answered)
    _print_scores(answered)
    if by is not None:
        _print_groups(answered, by, of)
    print_notes([*notes, *(note for selected, records in answered for note in _notes(selected, records))])


def _answered(
    model: LanguageModel, tasks: Sequence[Task], prompting: str, progress: TerminalProgress, by: str | None
) -> Answered:
    """The records of all items of each task; the first batch of every task comes first.

    These batches tell the speed of each task, and whether any task has the groups `by`.
    """
    from llmkick.study.task_forecast import forecast_tasks
    from llmkick.tasks.evaluate import evaluate_in_batches

    items = {task.name: task.items(model) for task in tasks}
    forecast, announcement = forecast_tasks(model, tasks, items, prompting=prompting)
    progress.plan(forecast, announcement)
    asked = [
        _AskedTask(
            task=task,
            items=len(items[task.name]),
            batches=evaluate_in_batches(model, task, prompting=prompting),
            forecast=forecast,
            progress=progress,
        )
        for task in tasks
    ]
    for each in asked if len(asked) > 1 or by is not None else []:
        each.ask(1)
    if by is not None:
        _refuse_unknown_groups(asked, by)
    for done, each in enumerate(asked):
        progress.cells(done, len(asked))
        each.ask(None)
    progress.cells(len(asked), len(asked))
    return [(each.task, each.records) for each in asked]


@dataclass(kw_only=True)
class _AskedTask:
    """A task, and the records of those of its batches that were asked."""

    task: Task
    items: int
    batches: Iterator[Sequence[Record]]
    forecast: Forecast
    progress: TerminalProgress
    records: list[Record] = field(default_factory=list)

    def ask(self, batches: int | None) -> None:
        """Ask some of the batches that are left, or all."""
        from llmkick.study.task_forecast import task_key

        key = task_key(self.task)
        self.progress.stage(self.task.name, self.items)
        if self.records:
            self.progress.advance(len(self.records))
        self.forecast.begin(key)
        started = time.perf_counter()
        for batch in itertools.islice(self.batches, batches):
            self.records += batch
            self.forecast.work(key, len(batch), time.perf_counter() - started)
            self.progress.advance(len(self.records))
            started = time.perf_counter()
        if batches is None:
            self.forecast.end(key)


def _refuse_unknown_groups(asked: Sequence[_AskedTask], by: str) -> None:
    """Raise ConfigError if the first records of every task lack the groups `by`, before the other items are asked."""
    from llmkick.tasks.grouping import group_scores

    errors: list[ConfigError] = []
    for each in asked:
        try:
            group_scores(each.records, by)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(asked):
        raise errors[0]


def _write_records(path: Path, answered: Answered) -> None:
    """Write all records as JSON lines, each with the name of its task."""
    from llmkick.files import write_text_atomically

    lines = [
        json.dumps({"task": task.name, **asdict(record)}, ensure_ascii=False)
        for task, records in answered
        for record in records
    ]
    write_text_atomically(path, "\n".join(lines) + "\n")


def _print_scores(answered: Answered) -> None:
    """Print the score of each task, and how many items have none."""
    from llmkick.tasks.task import summary_value

    table = Table("task", "metric", "score", "items", "unscored", "truncated")
    for task, records in answered:
        scored = sum(record.score is not None for record in records)
        truncated = sum(record.truncated for record in records)
        value = summary_value(task.metric, records)
        table.add_row(
            task.name, task.metric, "–" if value is None else f"{value:.4g}", str(scored), str(len(records) - scored),
            str(truncated),
        )  # fmt: skip
    out.print(table)


def _notes(task: Task, records: Sequence[Record]) -> list[str]:
    """What a reader of a task's score has to know, such as how options were chosen."""
    ways = {str(record.details["chosen_by"]) for record in records if "chosen_by" in record.details}
    chosen = [f"{task.name}: options were chosen by {way}" for way in sorted(ways)]
    counts = Counter(str(record.unscored_reason) for record in records if record.score is None)
    missing = [f"{task.name}: {count} unscored: {reason}" for reason, count in counts.most_common(3)]
    thoughts = sum(bool(record.details.get("thought_removed")) for record in records)
    removed = [f"{task.name}: {thoughts} answers were scored without the thoughts before them"] if thoughts else []
    return [*(f"{task.name}: {note}" for note in task.notes), *chosen, *missing, *removed]


def _print_groups(answered: Answered, by: str, of: str | None) -> None:
    """Means by group, over items and over groups, of the score or of another number in the records' details."""
    from llmkick.tasks.grouping import group_scores

    table = Table("task", by, of or "score", "items")
    without: list[tuple[str, ConfigError]] = []
    for task, records in answered:
        try:
            grouped = group_scores(records, by, of=of)
        except ConfigError as error:  # another task may have such groups
            without.append((task.name, error))
            continue
        if grouped is not None:
            for name, (mean, count) in grouped.groups.items():
                table.add_row(task.name, name, f"{mean:.4g}", str(count))
            scored = str(sum(count for _, count in grouped.groups.values()))
            table.add_row(task.name, "mean over items (micro)", f"{grouped.micro:.4g}", scored)
            table.add_row(task.name, "mean over groups (macro)", f"{grouped.macro:.4g}", scored)
    if without and not table.row_count:
        raise without[0][1]
    out.print(table)
    print_notes([f"{name}: {error}" for name, error in without])
