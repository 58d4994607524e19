"""Compressing a model that is in memory: by one recipe, by many in one pass, and again from kept blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from llmkick.compression.recipe import Dense, Recipe
from llmkick.compression.registry import parse_recipe, plugin_origins
from llmkick.compression.walk.block_sources import BlocksInMemory, put_layers
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.calibration import Calibration, as_calibration
from llmkick.compression.walk.checks import check_calibration_fits, check_recipe_fits
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.walk import WALK_VERSION, Progress, Walk
from llmkick.models.language_model import ModelInfo
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import check_finite, weights_digest


def compress(
    model: TransformersModel,
    recipe: Recipe | str,
    *,
    calibration: Calibration | npt.ArrayLike | None = None,
    seed: int = 0,
    propagate: bool = True,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> tuple[TransformersModel, CompressionReport]:
    """Compress every linear layer inside the decoder blocks; the given model stays as it is.

    calibration: a Calibration, or token ids (sequences, tokens). Methods that need none use a few of its
    sequences, when given, to measure the output error. `seed` is recorded in the report: the randomness of
    a compression is that of its calibration. With `propagate` each block is calibrated on the outputs of
    the compressed blocks before it, as in all originals; without, on those of the dense model. In the folder
    `keep` every finished block is kept: called again after it was stopped, the walk goes on there.
    Raises ConfigError for a recipe that does not fit the model, NumericalError naming the layer when
    activations or weights are not finite.
    """
    recipe = _parsed(recipe)
    windows = check_all(model, [recipe], calibration)
    finished = (
        None if keep is None else kept_blocks(model.info, model.device, recipe, windows, keep, propagate=propagate)
    )
    if finished is not None and finished.report is not None:
        return restore(model, finished)
    network = shallow_copy(model.network)
    output = RecipeOutput(recipe=recipe, blocks=decoder_blocks(network), finished=finished)
    if finished is not None and not propagate:
        output.blocks = None
    at_work = network if propagate else model.network
    _walk(model, at_work, [output], windows, propagate=propagate, progress=progress)
    if finished is not None and not propagate:
        _put_all(network, finished)
    report = _finish(model, network, output, windows, seed=seed, propagate=propagate)
    return model.with_network(network, digest=report.digest), report


def compress_many(
    model: TransformersModel,
    recipes: Sequence[Recipe | str],
    *,
    calibration: Calibration | npt.ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[TransformersModel, CompressionReport]]:
    """Compress a model by several recipes in one pass over the calibration, every statistic from the dense model.

    As `compress` with `propagate=False` for each recipe, at the price of one set of forwards. All models are
    held in memory, sharing what was not compressed; `compress_into` holds none.
    """
    parsed = [_parsed(recipe) for recipe in recipes]
    windows = check_all(model, parsed, calibration)
    networks = [shallow_copy(model.network) for _ in parsed]
    outputs = [RecipeOutput(recipe=r, blocks=decoder_blocks(n)) for r, n in zip(parsed, networks, strict=True)]
    _walk_by_need(model, outputs, windows, progress)
    results = []
    for output, network in zip(outputs, networks, strict=True):
        report = _finish(model, network, output, windows, seed=seed, propagate=False)
        results.append((model.with_network(network, digest=report.digest), report))
    return results


def compress_into(
    model: TransformersModel,
    folders: Mapping[str, Path],
    *,
    calibration: Calibration | npt.ArrayLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CompressionReport]:
    """As `compress_many`, for recipes as text with a folder each, where finished blocks are kept at once.

    In memory there is never more than one compressed block of each recipe; `restore` makes models of the folders.
    """
    recipes = {text: parse_recipe(text) for text in folders}
    windows = check_all(model, list(recipes.values()), calibration)
    outputs = []
    for text, recipe in recipes.items():
        kept = kept_blocks(model.info, model.device, recipe, windows, folders[text], propagate=False)
        outputs.append(RecipeOutput(recipe=recipe, finished=kept))
    _walk_by_need(model, [o for o in outputs if o.finished and o.finished.report is None], windows, progress)
    reports = []
    for output in outputs:
        assert output.finished is not None
        report = output.finished.report
        if report is None:
            network = shallow_copy(model.network)
            _put_all(network, output.finished)
            report = _finish(model, network, output, windows, seed=seed, propagate=False)
        reports.append(report)
    return reports


def kept_blocks(
    info: ModelInfo,
    device: torch.device,
    recipe: Recipe,
    windows: Calibration | None,
    folder: Path,
    *,
    propagate: bool,
) -> FinishedBlocks:
    """The finished blocks of this compression in a folder; ConfigError when it holds another one's."""
    return FinishedBlocks(folder, kept_key(info, device, recipe, windows, propagate=propagate))


def restore(model: TransformersModel, finished: FinishedBlocks) -> tuple[TransformersModel, CompressionReport]:
    """The compressed model whose blocks are all kept, around the dense model that it was made from."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    network = shallow_copy(model.network)
    _put_all(network, finished)
    return model.with_network(network, digest=finished.report.digest), finished.report


def artifact_key(
    info: ModelInfo, device: torch.device, recipe: Recipe, calibration: Calibration | None, *, propagate: bool
) -> dict[str, Any]:
    """Everything that decides the compressed weights."""
    return {
        "weights": info.digest,
        "dtype": info.dtype,
        "device": device.type,
        "recipe": str(recipe),
        "calibration": calibration.digest if calibration is not None and recipe.needs_calibration else None,
        "propagate": propagate if recipe.needs_calibration else None,
        "walk": WALK_VERSION,
        **({"plugins": origins} if (origins := plugin_origins(recipe)) else {}),
    }


def kept_key(
    info: ModelInfo, device: torch.device, recipe: Recipe, windows: Calibration | None, *, propagate: bool
) -> dict[str, Any]:
    """Everything that decides the compressed weights and their report: also the text that errors are measured on."""
    measured_on = None if windows is None else windows.digest
    return {**artifact_key(info, device, recipe, windows, propagate=propagate), "measured_on": measured_on}


def check_all(
    model: TransformersModel, recipes: Sequence[Recipe], calibration: Calibration | npt.ArrayLike | None
) -> Calibration | None:
    """The calibration, when everything fits together; ConfigError or NumericalError before any work otherwise."""
    windows = None if calibration is None else as_calibration(calibration)
    blocks = decoder_blocks(model.network)
    for recipe in recipes:
        check_recipe_fits(recipe, blocks, windows)
    if windows is not None:
        check_calibration_fits(windows, model)
    check_finite(model.network)
    return windows


def make_report(
    output: RecipeOutput, info: ModelInfo, windows: Calibration | None, *, seed: int, propagate: bool, digest: str
) -> CompressionReport:
    """The report of a recipe whose blocks are all finished."""
    used = windows if output.recipe.needs_calibration else None
    return CompressionReport(
        recipe=str(output.recipe),
        model=info.name,
        source_precision=info.source_precision,
        seed=seed,
        calibration=None if used is None else used.digest,
        calibration_source=None if used is None else used.source,
        propagate=propagate,
        digest=digest,
        seconds=output.tally.seconds,
        dense_bytes=output.tally.dense_bytes,
        stored_bytes=output.tally.stored_bytes,
        layers=tuple(output.tally.layers),
        warnings=tuple(output.tally.warnings),
    )


def _parsed(recipe: Recipe | str) -> Recipe:
    return parse_recipe(recipe) if isinstance(recipe, str) else recipe


def _walk_by_need(
    model: TransformersModel, outputs: list[RecipeOutput], windows: Calibration | None, progress: Progress | None
) -> None:
    """One walk for the recipes that need calibration, one for those that see a few of its sequences only."""
    needy = [output for output in outputs if output.recipe.needs_calibration]
    others = [o for o in outputs if not o.recipe.needs_calibration and not isinstance(o.recipe, Dense)]
    for together in (needy, others):
        if together:
            _walk(model, model.network, together, windows, propagate=False, progress=progress)


def _walk(
    model: TransformersModel,
    network: nn.Module,
    outputs: list[RecipeOutput],
    windows: Calibration | None,
    *,
    propagate: bool,
    progress: Progress | None,
) -> None:
    Walk(
        network=network,
        source=BlocksInMemory(blocks=decoder_blocks(network)),
        outputs=outputs,
        device=model.device,
        propagate=propagate,
        progress=progress,
    ).run(windows)


def _put_all(network: nn.Module, finished: FinishedBlocks) -> None:
    for index, block in enumerate(decoder_blocks(network)[: finished.count]):
        put_layers(block, finished.weights(index))


def _finish(
    model: TransformersModel,
    network: nn.Module,
    output: RecipeOutput,
    windows: Calibration | None,
    *,
    seed: int,
    propagate: bool,
) -> CompressionReport:
    digest = model.info.digest if isinstance(output.recipe, Dense) else weights_digest(network)
    report = make_report(output, model.info, windows, seed=seed, propagate=propagate, digest=digest)
    if output.finished is not None:
        output.finished.complete(report)
    return report
