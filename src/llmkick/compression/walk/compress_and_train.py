"""A recipe that ends with a training: the compression of its base, then the training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from llmkick.compression.recipe import Recovered
from llmkick.compression.training.recover import Compressed, TrainedRecovery
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.walk import Progress
from llmkick.models.transformers_model import TransformersModel


class WalkOptions(TypedDict):
    """The options of `compress` that its base is compressed with too."""

    seed: int
    propagate: bool
    allow_partial: bool


def compress_and_train(
    compress: Callable[..., tuple[TransformersModel, CompressionReport]],
    model: TransformersModel,
    recipe: Recovered,
    windows: Calibration,
    finished: FinishedBlocks | None,
    base: Path | None,
    options: WalkOptions,
    *,
    progress: Progress | None,
) -> tuple[TransformersModel, CompressionReport]:
    """Compress by the base of a trained recovery with `compress`, then train.

    base: the folder for its finished blocks; by default one inside that of the recovered blocks, deleted at the end.
    """
    folder = base if base is not None or finished is None else finished.folder / "base"
    compressed, report = compress(
        model, recipe.base, calibration=windows, keep=folder, progress=_half(progress, first=True), **options
    )
    kept = None
    if folder is not None:
        device, propagate = model.device, options["propagate"]
        kept = kept_blocks(model.info, device, recipe.base, windows, folder, propagate=propagate)
    blocks = len(decoder_blocks(model.network))
    half = _half(progress, first=False)
    result = TrainedRecovery(
        dense=model,
        base=Compressed(model=compressed, report=report, finished=kept),
        recipe=recipe,
        windows=windows,
        finished=finished,
        progress=None if half is None else lambda done, total: half(done * blocks // max(1, total), blocks),
    ).run()
    if folder is not None and base is None:
        shutil.rmtree(folder)
    return result


def _half(progress: Progress | None, *, first: bool) -> Progress | None:
    """The progress of one of two parts of a compression, both of which count all blocks."""
    if progress is None:
        return None
    return lambda done, total: progress((done if first else total + done) // 2, total)
