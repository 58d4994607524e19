"""`kick frontier`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmkick.cli.common import Device, Dtype, Quiet, app, err, out, print_notes


@app.command()
def frontier(
    model: Annotated[str, typer.Argument(help="built-in name, folder, hub id or .gguf file")],
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="wanda, wanda@n:m, gptq, or wanda@0.1,0.2,…; may be repeated")
    ],
    task: Annotated[list[str], typer.Option("--task", "-t", help="see `kick tasks`; may be repeated")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="folder of the results; resumed when it has some")],
    limit: Annotated[int | None, typer.Option(help="items a task (a stratified sample)")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="calibration seeds: the first searches, all of them confirm")
    ] = None,
    quick_search: Annotated[
        bool, typer.Option("--quick-search", help="search without propagation, confirm with it")
    ] = False,
    perplexity: Annotated[bool, typer.Option(help="show perplexity's safe level beside the tasks")] = True,
    calibration: Annotated[str, typer.Option(help="self, c4, or a file or folder of text")] = "self",
    sequences: Annotated[int, typer.Option(help="calibration windows")] = 32,
    length: Annotated[int, typer.Option(help="tokens a calibration window")] = 512,
    margin: Annotated[float, typer.Option(help="largest relative loss that still matches")] = 0.05,
    alpha: Annotated[float, typer.Option(help="error rate of a verdict")] = 0.05,
    source: Annotated[str, typer.Option(help="pocket, hub or a folder of official files")] = "pocket",
    protocol: Annotated[str, typer.Option(help="strict or paper")] = "strict",
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """How far can this model be compressed? The strongest level of each method that still matches.

    Levels are searched by bisection, each is asked only until it is decided, and the level found is confirmed on
    every item. The same command again resumes.

    Examples:

        kick frontier smollm2-135m-instruct --method wanda --method gptq --task factoid_qa --out runs/frontier

        kick frontier ./my-model -m wanda@n:m -m wanda@0.1,0.2,0.3,0.4,0.5 -t multiple_choice --source data/mmlu -o far
    """
    from llmkick.cli.progress import Watcher
    from llmkick.report.figures.frontier import frontier_table, write_frontier_figure
    from llmkick.study.frontier.search import run_frontier

    tasks: list[dict[str, Any]] = [
        {"name": name, "source": source, "protocol": protocol, **({} if limit is None else {"limit": limit})}
        for name in task
    ]
    if perplexity and not any(name.startswith("perplexity") for name in task):
        tasks.append({"name": "perplexity", "protocol": protocol})
    study = {
        "name": folder.name,
        "model": model,
        "tasks": tasks,
        "calibration": {"source": calibration, "sequences": sequences, "length": length},
        "margin": margin,
        "alpha": alpha,
        "dtype": dtype,
        "device": device,
    }
    with Watcher(err, quiet=quiet) as watcher:
        result = run_frontier(
            study, method, out=folder, seeds=seed or [0], search_propagate=not quick_search, observer=watcher
        )
    pages = write_frontier_figure(result)
    out.print(frontier_table(result))
    print_notes(list(result.warnings))
    out.print(f"figure: {pages[-1]}", markup=False, highlight=False, soft_wrap=True)
