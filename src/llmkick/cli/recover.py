"""`kick recover`: compress a model, bring back what it lost, and write the result to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmkick.cli.common import STUDIES, app, given
from llmkick.cli.compress import AllowPartial, Form, Packed, Propagate, Seed, compress_to_folder
from llmkick.cli.options import (
    CHECKPOINT_HELP,
    OUTPUT,
    CalibrationSource,
    Device,
    DtypeOption,
    Length,
    Quiet,
    Sequences,
)
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.compression.recipe import Recovered
    from llmkick.compression.recoveries import Recovery

RECOVERY = "Recovery"
By = Literal["eora", "reconstruct", "lora", "shots"]
# A test in tests/cli compares these choices with what recipes accept.
Objective = Literal["distillation", "next-token"]
LearningRate = Annotated[float, typer.Option(help="lora: the largest learning rate.", rich_help_panel=RECOVERY)]
ObjectiveOption = Annotated[
    Objective,
    typer.Option(help="lora: the dense model's distributions, or the text itself.", rich_help_panel=RECOVERY),
]
AdapterOption = Annotated[
    bool,
    typer.Option(
        "--adapter",
        help="eora, lora on rounded weights: write the compressed weights, and the matrices as an adapter of peft.",
        rich_help_panel=OUTPUT,
    ),
]
TRAINING = ("steps", "learning_rate", "objective", "batch", "tokens", "minutes")
SHOTS = (
    "shots changes no weights, so there is no model to write: it is the same task with worked examples in its prompt. "
    "In a study file give the task several numbers, shots = [0, 5], beside the recipes; "
    "examples/recover.toml does, and docs/recovery.md says how to read it"
)


@app.command(rich_help_panel=STUDIES)
def recover(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=CHECKPOINT_HELP)],
    recipe: Annotated[str, typer.Argument(help="The compression, for example wanda@2:4; see `kick methods`.")],
    by: Annotated[By, typer.Option(help="How to recover.", rich_help_panel=RECOVERY)],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for the recovered model.", rich_help_panel=OUTPUT)
    ],
    rank: Annotated[
        int | None,
        typer.Option(help="eora, lora: rank of the added matrices. Default: 128, 8.", rich_help_panel=RECOVERY),
    ] = None,
    steps: Annotated[int, typer.Option(help="lora: steps of the training.", rich_help_panel=RECOVERY)] = 60,
    learning_rate: LearningRate = 1e-3,
    objective: ObjectiveOption = "distillation",
    batch: Annotated[int, typer.Option(help="lora: calibration windows a step.", rich_help_panel=RECOVERY)] = 2,
    tokens: Annotated[
        int | None, typer.Option(help="lora: train on so many tokens at most.", rich_help_panel=RECOVERY)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="lora: train for so many minutes at most.", rich_help_panel=RECOVERY)
    ] = None,
    calibration: CalibrationSource = "auto",
    sequences: Sequences = 32,
    length: Length = 512,
    seed: Seed = 0,
    propagate: Propagate = True,
    allow_partial: AllowPartial = False,
    packed: Packed = False,
    adapter: AdapterOption = False,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compress a model, recover what it lost on calibration text, and write it into a folder like `kick compress`.

    `--by eora` adds a low-rank matrix to each layer, `--by reconstruct` refits the weights that are left, `--by lora`
    trains towards the dense model (`pip install 'llmkick[recover]'`). Matrices of eora, and of lora on rounded weights,
    fill zeros and leave the grid: `--packed` keeps them beside the weights, `--adapter` writes them for peft, a plain
    folder has the sum.
    `kick compress`, `kick frontier` and study files take `wanda@2:4+lora`. If stopped, the same command continues.

    Examples:

        kick recover smollm2-135m-instruct wanda@2:4 --by lora --steps 100 -o models/smol-2-4-lora

        kick recover ./my-llama gptq@3b-g128 --by eora --rank 64 -o models/my-llama-3bit-eora --packed

        kick recover ./my-llama wanda@0.5 --by reconstruct -o models/my-llama-half
    """
    recovered = _recovered(recipe, by, context.params, given(context))
    compress_to_folder(
        model, recovered, folder, form=_form(packed=packed, adapter=adapter), calibration=calibration,
        sequences=sequences, length=length, seed=seed, propagate=propagate, allow_partial=allow_partial, dtype=dtype,
        device=device, quiet=quiet, command="recover",
    )  # fmt: skip


def _form(*, packed: bool, adapter: bool) -> Form:
    """The form in which to write. Raises ConfigError for options that exclude each other."""
    if packed and adapter:
        raise ConfigError("--packed and --adapter are two ways to write a model; choose one")
    return "adapter" if adapter else "packed" if packed else "folder"


def _recovered(recipe: str, by: By, settings: Mapping[str, object], options: list[str]) -> Recovered:
    """The recipe that the options describe; `options` are those that were typed. Raises ConfigError."""
    from llmkick.compression.recipe import Recovered
    from llmkick.compression.registry import parse_recipe

    if by == "shots":
        raise ConfigError(SHOTS)
    base = parse_recipe(recipe)
    if isinstance(base, Recovered):
        raise ConfigError(f"{recipe} names a recovery already; give {base.base}, or use kick compress")
    _refuse_unused(by, options)
    return Recovered(base=base, recovery=_recovery(by, settings))


def _refuse_unused(by: By, options: list[str]) -> None:
    """Raise ConfigError for an option that the recovery does not have."""
    allowed = {"eora": ("rank",), "reconstruct": (), "lora": (*TRAINING, "rank"), "shots": ()}[by]
    for name in options:
        if name in (*TRAINING, "rank") and name not in allowed:
            raise ConfigError(f"--{name.replace('_', '-')} is no option of {by}; it takes {_written(allowed)}")


def _written(names: tuple[str, ...]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names) or "none of these"


def _recovery(by: By, settings: Mapping[str, object]) -> Recovery:
    """The recovery that the options describe."""
    from dataclasses import replace

    from llmkick.compression.recoveries import LoRA, Training, parse_recovery

    recovery = parse_recovery(by if settings["rank"] is None else f"{by}-r{settings['rank']}")
    if not isinstance(recovery, LoRA):
        return recovery
    return replace(recovery, training=Training(**{name: settings[name] for name in TRAINING}))  # type: ignore[arg-type]
