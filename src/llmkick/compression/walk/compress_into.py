"""Compressing a model in one pass into folders: by several recipes, each with one or several numbers of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.batches import ERROR_SEQUENCES
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import check_all, finish_report, put_all, walk_by_need
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.processes import ALONE
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.walk import Progress
from llmkick.errors import ConfigError
from llmkick.models.transformers_model import TransformersModel


@dataclass(frozen=True, kw_only=True)
class Job:
    """One compression of a pass: a recipe, its calibration windows, and the folder for its finished blocks."""

    recipe: Recipe
    windows: Calibration | None
    folder: Path


def compress_into(
    model: TransformersModel,
    jobs: Sequence[Job],
    *,
    seed: int = 0,
    allow_partial: bool = False,
    progress: Progress | None = None,
) -> list[CompressionReport]:
    """Compress a model by several recipes in one pass, with statistics of the dense model; a report for each job.

    As `compress_many`, but the finished blocks of each job are kept in its folder, and at most one compressed block of
    each is in memory. `restore` makes models from the folders. Jobs may have several numbers of windows of one text:
    each batch of windows runs once, and is added to the statistics of every number that has it. The results equal those
    of `compress` with `propagate=False` for each job.
    Raises ConfigError if the windows of a job are not the beginning of the longest; other errors as in `compress`.
    """
    longest = _longest(jobs)
    check_all(model, [job.recipe for job in jobs], longest, allow_partial=allow_partial)
    outputs = []
    for job in jobs:
        kept = kept_blocks(model.info, model.device, job.recipe, job.windows, job.folder, propagate=False)
        outputs.append(RecipeOutput(recipe=job.recipe, finished=kept, windows=_windows_of(job)))
    unfinished = [output for output in outputs if output.finished and output.finished.report is None]
    walk_by_need(model, unfinished, longest, allow_partial=allow_partial, progress=progress)
    reports = []
    for job, output in zip(jobs, outputs, strict=True):
        assert output.finished is not None
        report = output.finished.report
        if report is None:
            network = model.network
            if not _knows_layers(output.finished, network):  # kept by a version that did not keep digests
                network = shallow_copy(network)
                put_all(network, output.finished, ALONE)
            report = finish_report(model, network, output, job.windows, seed=seed, propagate=False)
        reports.append(report)
    return reports


def _knows_layers(finished: FinishedBlocks, network: nn.Module) -> bool:
    """Whether the digests of all compressed weights are known, so that these need not be read back for the report."""
    blocks = decoder_blocks(network)[: finished.count]
    tied = {twin.place.parameter for block in blocks for layer in block.layers for twin in layer.twins}
    names = {layer.place.parameter for block in blocks for layer in block.layers}
    return not tied and names <= finished.digests.keys()


def _windows_of(job: Job) -> int | None:
    """How many windows a job uses: all of its own, or a few of them if it only measures the output error."""
    if job.windows is None:
        return None
    return len(job.windows.tokens) if job.recipe.needs_calibration else min(ERROR_SEQUENCES, len(job.windows.tokens))


def _longest(jobs: Sequence[Job]) -> Calibration | None:
    windows = [job.windows for job in jobs if job.windows is not None]
    if not windows:
        return None
    longest = max(windows, key=lambda calibration: len(calibration.tokens))
    for calibration in windows:
        if not np.array_equal(calibration.tokens, longest.tokens[: len(calibration.tokens)]):
            raise ConfigError("the windows of one pass are the beginning of one text; compress other windows apart")
    return longest
