"""`kick export-lm-eval`: tasks for lm-eval (lm-evaluation-harness)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import RESULTS, app, print_line, print_notes
from llmkick.cli.options import (
    OUTPUT,
    STUDY,
    Device,
    DtypeOption,
    Limit,
    PromptingOption,
    ProtocolOption,
    SampleSeed,
    Source,
)


@app.command("export-lm-eval", rich_help_panel=RESULTS)
def export_lm_eval(
    task: Annotated[
        list[str], typer.Argument(help="factoid_qa, multiple_choice:letter, multiple_choice:cloze or context_qa:…")
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="New folder for the task files.", rich_help_panel=OUTPUT)],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Write prompts as this model gets them. Default: raw text for any model.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    prompting: PromptingOption = "auto",
    limit: Limit = None,
    seed: SampleSeed = 0,
    source: Source = "pocket",
    protocol: ProtocolOption = "strict",
    dtype: DtypeOption = "auto",
    device: Device = "auto",
) -> None:
    """Write tasks as lm-eval task files that give every item the same score.

    Examples:

        kick export-lm-eval factoid_qa multiple_choice:cloze -o lm-eval-tasks

        kick export-lm-eval context_qa:open -m smollm2-135m-instruct --prompting chat -o lm-eval-chat
    """
    from llmkick.lm_eval.exporting import export_tasks
    from llmkick.models.checkpoints.meta_model import load_meta_model
    from llmkick.study.spec.sections import task_specs

    specs = task_specs(task, source=source, protocol=protocol, limit=limit, seed=seed)
    tasks = [spec.make() for spec in specs]
    # The tokenizer and the template are enough: no weights are loaded.
    loaded = None if model is None else load_meta_model(model, dtype=dtype, device=device).model
    export = export_tasks(tasks, folder, model=loaded, prompting=prompting)
    print_notes(export.notes)
    print_line(export.command)
