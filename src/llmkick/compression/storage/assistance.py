"""What all processes of a compression but the first do: they calibrate and solve their part, and write nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmkick.compression.recipe import Recipe
from llmkick.compression.storage.whole_model import load_whole
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress_in_processes
from llmkick.compression.walk.processes import Processes
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.streaming import assist_streamed
from llmkick.errors import ModelError
from llmkick.models.checkpoints.meta_model import load_meta_model


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """What all processes of a compression are told when they start; see `compress`."""

    recipe: Recipe
    seed: int
    propagate: bool
    allow_partial: bool


def assist(processes: Processes, reference: str, walk: WalkOptions, device: str) -> CompressionReport:
    """Help the first process, which calls `compress_checkpoint`; returns its report.

    Raises ModelError if the files here are not those of the first process.
    """
    # When the first has read the model, what it has fetched or measured is in the caches of its machine.
    dtype, digest = processes.from_first()
    meta_model = load_meta_model(reference, dtype=dtype, device=device)
    if meta_model.info.digest != digest:
        raise ModelError(f"{reference} has other weights here than where the first process reads it")
    windows = _as_calibration(processes.from_first())
    if meta_model.obstacle is None:
        assist_streamed(
            meta_model, walk.recipe, calibration=windows, propagate=walk.propagate, allow_partial=walk.allow_partial,
            processes=processes,
        )  # fmt: skip
    else:
        whole = load_whole(meta_model, to_compress=True)
        compress_in_processes(
            processes, whole, walk.recipe, calibration=windows, seed=walk.seed, propagate=walk.propagate,
            allow_partial=walk.allow_partial, progress=None, keep=None,
        )  # fmt: skip
    return report_to_all(processes)


def report_to_all(processes: Processes, report: CompressionReport | None = None) -> CompressionReport:
    """The report of the first process, in all of them; warnings and seconds of the others are their own."""
    values = processes.from_first(None if report is None else report.to_json())
    return CompressionReport.from_json(values) if report is None else report


def _as_calibration(values: tuple[list[list[int]], str, int] | None) -> Calibration | None:
    if values is None:
        return None
    tokens, source, seed = values
    return Calibration(tokens=np.array(tokens, dtype=np.int64), source=source, seed=seed)
