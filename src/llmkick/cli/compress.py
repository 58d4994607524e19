"""`kick compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkick.cli.common import Device, Dtype, Quiet, app, err, out, print_notes
from llmkick.errors import ConfigError


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="built-in name, folder, hub id or .gguf file")],
    recipe: Annotated[str, typer.Argument(help="for example wanda@2:4; see `kick methods`")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="new folder for the compressed model")],
    calibration: Annotated[str, typer.Option(help="self, c4, or a file or folder of text")] = "self",
    sequences: Annotated[int, typer.Option(help="calibration windows")] = 32,
    length: Annotated[int, typer.Option(help="tokens a calibration window")] = 512,
    seed: Annotated[int, typer.Option(help="seed of the calibration")] = 0,
    propagate: Annotated[bool, typer.Option(help="calibrate each block on the compressed blocks before it")] = True,
    packed: Annotated[bool, typer.Option("--packed", help="write the compact form: only what is left")] = False,
    compressed_tensors: Annotated[
        bool, typer.Option("--compressed-tensors", help="write rounded weights in that format")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compress a model block by block into a folder; stopped, the same command goes on at its block.

    The folder is a Hugging Face one that any tool loads. With `--packed` it holds only the weights that are left
    and their places or codes; every `kick` command opens it.

    Examples:

        kick compress smollm2-135m-instruct wanda@2:4 -o models/smol-2-4

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-4bit --packed

        kick compress ./my-llama gptq@4b-g128 -o models/my-llama-ct --compressed-tensors
    """
    from llmkick.cli.progress import Watcher
    from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint

    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 4294967295; got {seed}")
    if packed and compressed_tensors:
        raise ConfigError("--packed and --compressed-tensors are two ways to write a model; choose one")
    with Watcher(err, quiet=quiet) as watcher:
        report = compress_checkpoint(
            model,
            recipe,
            folder,
            form="packed" if packed else "compressed-tensors" if compressed_tensors else "folder",
            calibration=CalibrationPlan(source=calibration, sequences=sequences, length=length, seed=seed),
            propagate=propagate,
            dtype=dtype,
            device=device,
            observer=watcher,
        )
    print_notes(list(report.warnings))
    out.print(
        f"{recipe}: {report.realised_sparsity:.1%} zeros in {len(report.layers)} layers, "
        f"{report.stored_bytes / 1e6:.1f} MB in compact form against {report.dense_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.1f} s → {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
