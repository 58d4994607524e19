"""`kick compare`: a dense model against models that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, err, out, print_line, print_notes, study_of
from llmkick.cli.options import (
    MODEL_HELP,
    OUTPUT,
    Concurrency,
    Device,
    DtypeOption,
    Limit,
    Margin,
    PromptingOption,
    ProtocolOption,
    Quiet,
    Source,
    TaskNames,
    ThinkingOption,
    Timeout,
)
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.study.spec.study import Study


@app.command(rich_help_panel=STUDIES)
def compare(
    dense: Annotated[str, typer.Argument(help=f"The reference. {MODEL_HELP}")],
    others: Annotated[
        list[str], typer.Argument(metavar="OTHER...", help="Models to compare with it. NAME=MODEL gives a name.")
    ],
    task: TaskNames,
    limit: Limit = None,
    source: Source = "pocket",
    protocol: ProtocolOption = "strict",
    prompting: PromptingOption = "auto",
    thinking: ThinkingOption = "off",
    margin: Margin = 0.05,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    timeout: Timeout = 120.0,
    concurrency: Concurrency = 8,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results. Default: runs/compare-…, named after the options.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare a dense model with other models, question by question: verdicts, sizes and a report.

    The other models may be folders and hub ids in any quantized form that transformers loads, `.gguf` files, packed
    models, pruned folders, servers, or different models altogether. The same command resumes a run that was stopped.

    Examples:

        kick compare smollm2-135m-instruct smol-Q4_0.gguf smol-Q8_0.gguf -t factoid_qa -t perplexity

        kick compare ./llama-3b awq=./llama-3b-awq sparse=./llama-8b-2-4 -t multiple_choice:cloze -o runs/llama

        kick compare ./my-model openai:http://127.0.0.1:8000/v1#my-model-fp8 -t context_qa:open --limit 200
    """
    from llmkick.study.spec.sections import task_specs

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1; got {limit}")
    study = study_of(
        folder,
        "compare",
        model=dense,
        others=others,
        tasks=task_specs(task, source=source, protocol=protocol, limit=limit),
        prompting=prompting,
        thinking=thinking,
        margin=margin,
        dtype=dtype,
        device=device,
        server={"timeout": timeout, "concurrency": concurrency},
    )
    _run_and_report(study, folder or Path("runs") / f"compare-{study.hash()[:10]}", quiet=quiet)


def _run_and_report(study: Study, folder: Path, *, quiet: bool) -> None:
    from llmkick.cli.progress import TerminalProgress, spinner
    from llmkick.report.models import models_table
    from llmkick.report.page.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.run import run_study

    with TerminalProgress(err, quiet=quiet, reports=True, words=words_of("compare")) as progress:
        result = run_study(study, out=folder, observer=progress)
    with spinner(err, "writing the report", quiet=quiet):
        page = write_report(folder)
    out.print(verdict_table(result))
    out.print(models_table(result))
    print_notes(result.warnings)
    print_line(f"report: {page}")
