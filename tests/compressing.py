"""Compression of a model's folder into another one, as `kick compress` does it."""

from __future__ import annotations

from pathlib import Path

from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.compression.walk.report import CompressionReport


class Silent:
    """An observer that shows nothing."""

    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


def compressed(
    source: Path, folder: Path, form: Form = "folder", recipe: str = "magnitude@0.5", dtype: str = "float32"
) -> CompressionReport:
    """The report of a compression on little calibration text."""
    plan = CalibrationPlan(sequences=2, length=16)
    return compress_checkpoint(str(source), recipe, folder, form=form, calibration=plan, dtype=dtype, observer=Silent())
