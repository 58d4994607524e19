"""The keys of compressed weights: everything that determines them. The cache and the records of a study use them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.registry import plugin_origins
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.versions import RECOVERY_VERSION, walk_version
from llmkick.models.language_model import ModelInfo


def kept_blocks(
    info: ModelInfo,
    device: torch.device,
    recipe: Recipe,
    windows: Calibration | None,
    folder: Path,
    *,
    propagate: bool,
) -> FinishedBlocks:
    """The finished blocks of this compression in a folder. Raises ConfigError for a folder of another compression."""
    return FinishedBlocks(folder, kept_key(info, device, recipe, windows, propagate=propagate))


def artifact_key(
    info: ModelInfo, device: torch.device, recipe: Recipe, calibration: Calibration | None, *, propagate: bool
) -> dict[str, Any]:
    """The key of the compressed weights: everything that determines them."""
    return {
        "weights": info.digest,
        "dtype": info.dtype,
        "device": device.type,
        "recipe": str(recipe),
        "calibration": calibration.digest if calibration is not None and recipe.needs_calibration else None,
        "propagate": propagate if recipe.needs_calibration else None,
        "walk": walk_version(info.architecture),
        **({"plugins": origins} if (origins := plugin_origins(recipe)) else {}),
        **({"recovery": _recovery_key(recipe, calibration)} if isinstance(recipe, Recovered) else {}),
    }


def kept_key(
    info: ModelInfo, device: torch.device, recipe: Recipe, windows: Calibration | None, *, propagate: bool
) -> dict[str, Any]:
    """The key of weights and report: `artifact_key`, and the text on which output errors are measured."""
    measured_on = None if windows is None else windows.digest
    return {**artifact_key(info, device, recipe, windows, propagate=propagate), "measured_on": measured_on}


def _recovery_key(recipe: Recovered, calibration: Calibration | None) -> dict[str, Any]:
    """What determines a recovery beside its text: the settings of a training, and the seed that it draws from."""
    settings = asdict(recipe.recovery)
    seed = calibration.seed if is_trained(recipe) and calibration is not None else None
    return {"version": RECOVERY_VERSION, **settings, "seed": seed}
