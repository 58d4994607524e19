"""`kick compress`: a compressed model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

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
    from llmkick.compression.walk.report import CompressionReport

Form = Literal["folder", "packed", "compressed-tensors"]

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
    calibration: CalibrationSource = "self",
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

        torchrun --nproc-per-node 4 -m llmkick compress ./my-llama sparsegpt@2:4 -o models/my-llama-2-4
    """
    from llmkick.cli.progress import TerminalProgress
    from llmkick.compression.registry import parse_recipe
    from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
    from llmkick.compression.walk.processes import torchrun_device
    from llmkick.study.compression_forecast import CompressionProgress

    with speaking(number("LOCAL_RANK") == 0):
        form, parsed = _form(seed, packed=packed, compressed_tensors=compressed_tensors), parse_recipe(recipe)
    plan = CalibrationPlan(source=calibration, sequences=sequences, length=length, seed=seed)
    is_first = number("RANK") == 0
    with (
        speaking(number("LOCAL_RANK") == 0),
        torchrun_device(device) as own_device,
        speaking(is_first),
        TerminalProgress(err, quiet=quiet or not is_first) as progress,
    ):
        observer = CompressionProgress(
            observer=progress, recipe=parsed, source=calibration, sequences=sequences, length=length
        )
        report = compress_checkpoint(
            model, parsed, folder, form=form, calibration=plan, propagate=propagate, allow_partial=allow_partial,
            dtype=dtype, device=own_device, observer=observer, on_model=observer.plan,
        )  # fmt: skip
    if is_first:
        _print_report(recipe, report, folder)


def _form(seed: int, *, packed: bool, compressed_tensors: bool) -> Form:
    """The form in which to write. Raises ConfigError for options out of range or that exclude each other."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 4294967295; got {seed}")
    if packed and compressed_tensors:
        raise ConfigError("--packed and --compressed-tensors are two ways to write a model; choose one")
    return "packed" if packed else "compressed-tensors" if compressed_tensors else "folder"


def _print_report(recipe: str, report: CompressionReport, folder: Path) -> None:
    print_notes(report.warnings)
    if report.routers:
        print_line(f"routers left dense: {', '.join(report.router_names)}")
    print_line(
        f"{recipe}: {report.realised_sparsity:.1%} zeros in {len(report.layers)} layers, {report.coverage}, "
        f"{report.stored_bytes / 1e6:.1f} MB in compact form against {report.dense_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s → {folder}"
    )
