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
from llmkick.compression.walk.compress import make_report
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.keys import kept_blocks
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.streamed_blocks import StreamedBlocks, TensorSink
from llmkick.compression.walk.walk import Progress, Walk
from llmkick.errors import ModelError
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
    sink: TensorSink | None = None,
) -> FinishedBlocks:
    """Compress a model that is on the meta device, block by block, into a folder of finished blocks.

    The weights equal those of `compress` bit for bit. Memory holds a block at work, the next one, one or two that are
    being packed and written, the hidden states of the calibration, the second moments of one block's inputs and the
    network's parts before its blocks. Called again after it was stopped, it continues at the first block that is not
    finished. sink: is given all tensors of the compressed network by name, some at a time and each once, in a thread.
    Raises ModelError when its blocks cannot be read one by one; other errors as in `compress`.
    """
    if meta_model.obstacle is not None:
        raise ModelError(f"{meta_model.info.name} cannot be read block by block: {meta_model.obstacle}; load it whole")
    source = StreamedBlocks(meta_model)
    check_compressible(source.network, source.blocks, allow_partial=allow_partial)
    check_recipe_fits(recipe, source.blocks, calibration)
    if calibration is not None:
        check_calibration_fits(calibration, meta_model.model)
    finished = kept_blocks(meta_model.info, meta_model.device, recipe, calibration, folder, propagate=propagate)
    if finished.report is not None:
        if sink is not None:
            for tensors in source.compressed_tensors(finished):
                sink(tensors)
        return finished
    source.finished, source.sink = finished, sink
    output = RecipeOutput(recipe=recipe, finished=finished)
    source.take_up(finished)
    with finished.writing(), source.surroundings():
        outside = finished.soon(source.take_outside)
        Walk(
            network=meta_model.model.network,
            source=source,
            outputs=[output],
            device=meta_model.device,
            propagate=propagate,
            allow_partial=allow_partial,
            progress=progress,
        ).run(calibration)
    digests = outside.result() | finished.digests
    for name, twin in meta_model.tied.items():
        digests[name] = digests[twin]
    digest = combined_digest(digests)
    weights = count_weights(source.network, source.blocks)
    arguments = output, meta_model.info, calibration, weights
    finished.complete(make_report(*arguments, seed=seed, propagate=propagate, digest=digest))
    return finished
