"""Compressing a checkpoint that is never in memory as a whole: read, compress and keep one block at a time."""

from __future__ import annotations

from pathlib import Path

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import (
    check_calibration_fits,
    check_compressible,
    check_recipe_fits,
    count_weights,
)
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.network_parts import PartSink
from llmkick.compression.walk.processes import ALONE, Processes
from llmkick.compression.walk.recipe_output import RecipeOutput, make_report
from llmkick.compression.walk.shared_weights import shared_layers
from llmkick.compression.walk.streamed_blocks import StreamedBlocks
from llmkick.compression.walk.walk import Progress, Walk
from llmkick.errors import ConfigError, ModelError
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.weights import combined_digest


def compress_streamed(
    meta_model: MetaModel,
    recipe: Recipe,
    folder: Path,
    *,
    calibration: Calibration | None,
    seed: int = 0,
    propagate: bool = True,
    allow_partial: bool = False,
    progress: Progress | None = None,
    sink: PartSink | None = None,
    processes: Processes = ALONE,
) -> FinishedBlocks:
    """Compress a model that is on the meta device, block by block, into a folder of finished blocks.

    The weights equal those of `compress` bit for bit. Memory holds a block at work, the next one, one or two that are
    being packed and written, the hidden states of the calibration, the second moments of one block's inputs and the
    network's parts before its blocks. Called again after it was stopped, it continues at the first block that is not
    finished. sink: is given all tensors of the compressed network in a thread, some at a time and each once: those
    outside the blocks, then block by block. processes: of which this is the first; the others call `assist_streamed`.
    Raises ModelError when its blocks cannot be read one by one; other errors as in `compress`.
    """
    source = _checked_source(meta_model, recipe, calibration, processes, allow_partial=allow_partial)
    finished = kept_blocks(
        meta_model.info, meta_model.device, recipe, calibration, folder, propagate=propagate, processes=processes.count
    )
    processes.from_first([finished.report is not None, finished.count])
    if finished.report is not None:
        if sink is not None:
            for part in source.compressed_parts(finished):
                sink(part)
        return finished
    source.finished, source.sink = finished, sink
    output = RecipeOutput(recipe=recipe, finished=finished)
    with finished.writing(), source.surroundings(hands_on=True):
        outside = finished.soon(source.take_outside)
        if finished.count:
            outside.result()  # one thread at a time gives to the sink, and in this order
            source.take_up(finished)
        Walk(
            network=meta_model.model.network,
            source=source,
            outputs=[output],
            device=meta_model.device,
            propagate=propagate,
            allow_partial=allow_partial,
            progress=progress,
            processes=processes,
        ).run(calibration)
    digests = outside.result() | finished.digests
    for name, twin in meta_model.tied.items():
        digests[name] = digests[twin]
    digest = combined_digest(digests)
    weights = count_weights(source.network, source.blocks)
    arguments = output, meta_model.info, calibration, weights
    finished.complete(make_report(*arguments, seed=seed, propagate=propagate, digest=digest, processes=processes.count))
    return finished


def assist_streamed(
    meta_model: MetaModel,
    recipe: Recipe,
    *,
    calibration: Calibration | None,
    propagate: bool,
    allow_partial: bool,
    processes: Processes,
) -> None:
    """What all processes but the first do while it calls `compress_streamed`; they write nothing."""
    source = _checked_source(meta_model, recipe, calibration, processes, allow_partial=allow_partial)
    is_complete, count = processes.from_first()
    if is_complete:
        return
    with source.surroundings(hands_on=False):
        Walk(
            network=meta_model.model.network,
            source=source,
            outputs=[RecipeOutput(recipe=recipe, resumed=count)],
            device=meta_model.device,
            propagate=propagate,
            allow_partial=allow_partial,
            processes=processes,
        ).run(calibration)


def _checked_source(
    meta_model: MetaModel, recipe: Recipe, calibration: Calibration | None, processes: Processes, *, allow_partial: bool
) -> StreamedBlocks:
    """The blocks of a model, after all checks."""
    if meta_model.obstacle is not None:
        raise ModelError(f"{meta_model.info.name} cannot be read block by block: {meta_model.obstacle}; load it whole")
    source = StreamedBlocks(meta_model)
    if processes.count > 1 and shared_layers(source.blocks):
        raise ConfigError(
            f"{meta_model.info.name} has weights that blocks share, of which each process would need those that the "
            "first has compressed; run one process"
        )
    check_compressible(source.network, source.blocks, allow_partial=allow_partial)
    check_recipe_fits(recipe, source.blocks, calibration)
    if calibration is not None:
        check_calibration_fits(calibration, meta_model.model)
    return source
