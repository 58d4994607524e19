"""`kick compare`: a dense model and others that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import MODEL_HELP, Concurrency, Device, Dtype, Quiet, Timeout, app, err, out, print_notes
from llmkick.errors import ConfigError


@app.command()
def compare(
    dense: Annotated[str, typer.Argument(help=f"the reference: {MODEL_HELP}")],
    others: Annotated[
        list[str], typer.Argument(metavar="OTHER...", help="what is compared with it; NAME=MODEL names it")
    ],
    task: Annotated[list[str], typer.Option("--task", "-t", help="see `kick tasks`; may be repeated")],
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder of the results [default: runs/compare-…, by what is asked]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="items a task (a stratified sample)")] = None,
    source: Annotated[str, typer.Option(help="pocket, hub or a folder of official files")] = "pocket",
    protocol: Annotated[str, typer.Option(help="strict or paper")] = "strict",
    prompting: Annotated[str, typer.Option(help="auto, chat or raw; the same for all models")] = "auto",
    margin: Annotated[float, typer.Option(help="largest loss that still matches")] = 0.05,
    dtype: Dtype = "auto",
    device: Device = "auto",
    timeout: Timeout = 120.0,
    concurrency: Concurrency = 8,
    quiet: Quiet = False,
) -> None:
    """Compare a dense model with others, paired by question: verdicts, sizes, a report. Again, it resumes.

    Others may be folders and hub ids in any quantized form that transformers loads, `.gguf` files, packed models,
    pruned folders, servers, or different models altogether.

    Examples:

        kick compare smollm2-135m-instruct smol-Q4_0.gguf smol-Q8_0.gguf -t factoid_qa -t perplexity

        kick compare ./llama-3b awq=./llama-3b-awq sparse=./llama-8b-2-4 -t multiple_choice:cloze -o runs/llama

        kick compare ./my-model openai:http://127.0.0.1:8000/v1#my-model-fp8 -t context_qa:open --limit 200
    """
    from llmkick.cli.progress import Watcher, working
    from llmkick.report.models import models_table
    from llmkick.report.page.page import write_report
    from llmkick.report.tables import verdict_table
    from llmkick.study.run import run_study
    from llmkick.study.spec.study import make_study

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1; got {limit}")
    sample = {} if limit is None else {"limit": limit}
    study = make_study(
        {
            "name": folder.name if folder else "compare",
            "model": dense,
            "others": others,
            "tasks": [{"name": name, "source": source, "protocol": protocol, **sample} for name in task],
            "prompting": prompting,
            "margin": margin,
            "dtype": dtype,
            "device": device,
            "server": {"timeout": timeout, "concurrency": concurrency},
        }
    )
    folder = folder or Path("runs") / f"compare-{study.hash()[:10]}"
    with Watcher(err, quiet=quiet) as watcher:
        result = run_study(study, out=folder, observer=watcher)
    with working(err, "writing the report", quiet=quiet):
        page = write_report(folder)
    out.print(verdict_table(result))
    out.print(models_table(result))
    print_notes(list(result.warnings))
    out.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
