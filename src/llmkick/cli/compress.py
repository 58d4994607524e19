"""`kick compress`: a compressed model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmkick.cli.advice import words_of
from llmkick.cli.common import STUDIES, app, err, print_line, print_notes
from llmkick.cli.options import (
    CALIBRATION,
    CHECKPOINT_HELP,
    OUTPUT,
    CalibrationSource,
    Device,
    DtypeOption,
    Length,
    Quiet,
    Sequences,
)
from llmkick.cli.torchrun import number, speaking
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.compression.recipe import Recipe
    from llmkick.compression.walk.report import CompressionReport, RecoveryReport

Form = Literal["folder", "packed", "compressed-tensors", "adapter"]

Seed = Annotated[int, typer.Option(help="Seed of the calibration.", rich_help_panel=CALIBRATION)]
Propagate = Annotated[
    bool,
    typer.Option(help="Calibrate each block on the output of the compressed blocks.", rich_help_panel=CALIBRATION),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial",
        help="Compress a model even if over 10 % of its block weights stay dense.",
        rich_help_panel=OUTPUT,
    ),
]
Packed = Annotated[
    bool, typer.Option("--packed", help="Write the compact form: only the weights left.", rich_help_panel=OUTPUT)
]
CompressedTensors = Annotated[
    bool,
    typer.Option(
        "--compressed-tensors", help="Write rounded weights in the compressed-tensors format.", rich_help_panel=OUTPUT
    ),
]


@app.command(rich_help_panel=STUDIES)
def compress(
    model: Annotated[str, typer.Argument(help=CHECKPOINT_HELP)],
    recipe: Annotated[str, typer.Argument(help="For example wanda@2:4; see `kick methods`.")],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for the compressed model.", rich_help_panel=OUTPUT)
    ],
    calibration: CalibrationSource = "auto",
    sequences: Sequences = 32,
    length: Length = 512,
    seed: Seed = 0,
    propagate: Propagate = True,
    allow_partial: AllowPartial = False,
    packed: Packed = False,
    compressed_tensors: CompressedTensors = False,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compress a model block by block into a folder. If stopped, the same command continues at the block it was at.

    The result is a Hugging Face folder that any tool loads. With `--packed` it holds only the remaining weights and
    their positions or codes; every `kick` command opens it. Several GPUs share the work of one compression if torchrun
    starts a process for each.

    Examples:

        kick compress smollm2-135m-instruct wanda@2:4 -o models/smol-2-4

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-4bit --packed

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-ct --compressed-tensors

        kick compress ./my-llama wanda@2:4+lora -o models/my-llama-2-4-recovered

        torchrun --nproc-per-node 4 -m llmkick compress ./my-llama sparsegpt@2:4 -o models/my-llama-2-4
    """
    from llmkick.compression.registry import parse_recipe

    with speaking(number("LOCAL_RANK") == 0):
        form, parsed = _form(packed=packed, compressed_tensors=compressed_tensors), parse_recipe(recipe)
    compress_to_folder(
        model, parsed, folder, form=form, calibration=calibration, sequences=sequences, length=length,
        seed=seed, propagate=propagate, allow_partial=allow_partial, dtype=dtype, device=device, quiet=quiet,
    )  # fmt: skip


def compress_to_folder(
    model: str,
    recipe: Recipe,
    folder: Path,
    *,
    form: Form,
    calibration: str,
    sequences: int,
    length: int,
    seed: int,
    propagate: bool,
    allow_partial: bool,
    dtype: str,
    device: str,
    quiet: bool,
    command: str = "compress",
) -> None:
    """Compress a model into a folder as the options of this command say, and print what was done."""
    from llmkick.cli.progress import TerminalProgress
    from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
    from llmkick.compression.walk.processes import torchrun_device
    from llmkick.study.compression_forecast import CompressionProgress

    with speaking(number("LOCAL_RANK") == 0):
        _check_options(seed)
    plan = CalibrationPlan(source=calibration, sequences=sequences, length=length, seed=seed)
    is_first = number("RANK") == 0
    with (
        speaking(number("LOCAL_RANK") == 0),
        torchrun_device(device) as own_device,
        speaking(is_first),
        TerminalProgress(err, quiet=quiet or not is_first, words=words_of(command)) as progress,
    ):
        observer = CompressionProgress(
            observer=progress, recipe=recipe, source=calibration, sequences=sequences, length=length
        )
        report = compress_checkpoint(
            model, recipe, folder, form=form, calibration=plan, propagate=propagate, allow_partial=allow_partial,
            dtype=dtype, device=own_device, observer=observer, on_model=observer.plan,
        )  # fmt: skip
    if is_first:
        _print_report(report, folder)


def _check_options(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 4294967295; got {seed}")


def _form(*, packed: bool, compressed_tensors: bool) -> Form:
    """The form in which to write. Raises ConfigError for options that exclude each other."""
    if packed and compressed_tensors:
        raise ConfigError("--packed and --compressed-tensors are two ways to write a model; choose one")
    return "packed" if packed else "compressed-tensors" if compressed_tensors else "folder"


def _print_report(report: CompressionReport, folder: Path) -> None:
    """Print what a compression did, and where its model is."""
    print_notes(report.warnings)
    if report.routers:
        print_line(f"routers left dense: {', '.join(report.router_names)}")
    if report.recovery is not None:
        print_line(_recovery_line(report.recovery))
    print_line(
        f"{report.recipe}: {report.realised_sparsity:.1%} zeros in {len(report.layers)} layers, {report.coverage}, "
        f"{report.stored_bytes / 1e6:.1f} MB in compact form against {report.dense_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s → {folder}"
    )


def _recovery_line(recovery: RecoveryReport) -> str:
    """What a recovery did, in one line."""
    errors = [(layer.before, layer.after) for layer in recovery.layers]
    measured = [(before, after) for before, after in errors if before is not None and after is not None]
    parts = []
    if recovery.steps is not None:
        ended = f", stopped: {recovery.stopped}" if recovery.stopped else ""
        parts.append(f"{recovery.steps} steps{ended}")
    if recovery.loss_before is not None and recovery.loss_after is not None:
        parts.append(f"loss {recovery.loss_before:.4g} → {recovery.loss_after:.4g} nats a token")
    if measured:
        before, after = (sum(values) / len(measured) for values in zip(*measured, strict=True))
        parts.append(f"mean error of {len(measured)} layers {before:.1%} → {after:.1%}")
    parts.append(f"{recovery.extra_bytes / 1e6:.1f} MB more ({recovery.extra_bits_per_weight:.2f} bits a weight)")
    return f"{recovery.recovery}: {', '.join(parts)}, {recovery.tokens:,} tokens, {recovery.seconds:.1f} s"
