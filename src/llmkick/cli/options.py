"""The options that several commands share: name, help text, choices and `--help` panel, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkick.models.thoughts import Thinking
from llmkick.tasks.prompting import PromptingChoice
from llmkick.tasks.task import TaskProtocol

# The panels of `--help`.
STUDY, CALIBRATION, PLACE, OUTPUT = "Study", "Calibration", "Where it runs", "Output"

# The owner of the precisions imports torch, which `kick --help` does not need. A test in tests/cli/test_cli.py compares
# these choices with what a study accepts.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

MODEL_HELP = "Built-in name, folder, hub id, .gguf file, vllm:PATH, or a server: openai:URL#NAME."
CHECKPOINT_HELP = "Built-in name, folder, hub id or .gguf file."

# What is studied
TaskNames = Annotated[
    list[str],
    typer.Option("--task", "-t", help="Task to ask, see `kick tasks`. May be repeated.", rich_help_panel=STUDY),
]
Limit = Annotated[
    int | None, typer.Option(help="Items per task, a stratified sample. Default: all items.", rich_help_panel=STUDY)
]
SampleSeed = Annotated[int, typer.Option(help="Seed of the sample that --limit draws.", rich_help_panel=STUDY)]
Source = Annotated[
    str,
    typer.Option(help="Where the items come from: pocket, hub, or a folder of official files.", rich_help_panel=STUDY),
]
ProtocolOption = Annotated[
    TaskProtocol,
    typer.Option("--protocol", help="Prompts and scoring: strict, or as in the LLM-KICK paper.", rich_help_panel=STUDY),
]
PromptingOption = Annotated[
    PromptingChoice,
    typer.Option("--prompting", help="Chat template or raw text. auto: chat if there is one.", rich_help_panel=STUDY),
]
ThinkingOption = Annotated[
    Thinking,
    typer.Option("--thinking", help="Whether models that can think first are to do so.", rich_help_panel=STUDY),
]
Margin = Annotated[
    float, typer.Option(help="Largest relative loss that still counts as matching.", rich_help_panel=STUDY)
]
Alpha = Annotated[float, typer.Option(help="Error rate of a verdict.", rich_help_panel=STUDY)]

# Calibration
CalibrationSource = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="Calibration text: self, pocket, auto, c4, or a file or folder of text.",
        rich_help_panel=CALIBRATION,
    ),
]
Sequences = Annotated[int, typer.Option(help="Number of calibration windows.", rich_help_panel=CALIBRATION)]
Length = Annotated[int, typer.Option(help="Tokens per calibration window.", rich_help_panel=CALIBRATION)]

# Where it runs
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Precision of the weights.", rich_help_panel=PLACE)]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:1, …, or balanced to spread over all GPUs.", rich_help_panel=PLACE),
]
Timeout = Annotated[float, typer.Option(help="Servers: seconds to wait for a reply.", rich_help_panel=PLACE)]
Concurrency = Annotated[int, typer.Option(help="Servers: requests in flight at once.", rich_help_panel=PLACE)]

# Output
ResultsFolder = Annotated[
    Path,
    typer.Option("--out", "-o", help="Folder of the results. Resumed if it holds a run.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", rich_help_panel=OUTPUT)]
