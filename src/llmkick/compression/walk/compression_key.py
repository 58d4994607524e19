"""The key of a compression: everything that determines its weights, and its folder of finished blocks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.registry import plugin_origins
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.versions import ERROR_VERSION, RECOVERY_VERSION, walk_version
from llmkick.models.language_model import ModelInfo


def artifact_key(
    info: ModelInfo,
    device: torch.device,
    recipe: Recipe,
    calibration: Calibration | None,
    *,
    propagate: bool,
    processes: int = 1,
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
        # The sums of several processes are rounded in another way; recipes without calibration have none.
        **({"processes": processes} if processes > 1 and recipe.needs_calibration else {}),
        **({"recovery": _recovery_key(recipe, calibration)} if isinstance(recipe, Recovered) else {}),
    }


def kept_key(
    info: ModelInfo,
    device: torch.device,
    recipe: Recipe,
    windows: Calibration | None,
    *,
    propagate: bool,
    processes: int = 1,
) -> dict[str, Any]:
    """The key of weights and report: `artifact_key`, and what the output errors are measured on.

    Compressed blocks propagate errors also where the weights do not depend on it.
    """
    key = artifact_key(info, device, recipe, windows, propagate=propagate, processes=processes)
    if windows is None:
        return {**key, "measured_on": None}
    return {**key, "measured_on": windows.digest, "error_version": ERROR_VERSION, "errors_propagated": propagate}


def kept_blocks(
    info: ModelInfo,
    device: torch.device,
    recipe: Recipe,
    windows: Calibration | None,
    folder: Path,
    *,
    propagate: bool,
    processes: int = 1,
) -> FinishedBlocks:
    """The finished blocks of this compression in a folder. Raises ConfigError for a folder of another compression."""
    key = kept_key(info, device, recipe, windows, propagate=propagate, processes=processes)
    return FinishedBlocks(folder, key)


def _recovery_key(recipe: Recovered, calibration: Calibration | None) -> dict[str, Any]:
    """What determines a recovery beside its text: the settings of a training, and the seed that it draws from."""
    settings = asdict(recipe.recovery)
    seed = calibration.seed if is_trained(recipe) and calibration is not None else None
    return {"version": RECOVERY_VERSION, **settings, "seed": seed}
