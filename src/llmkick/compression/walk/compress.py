"""Compressing a model in memory: by one recipe, by several in one pass, or from blocks that are kept on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy.typing as npt
from torch import nn

from llmkick.compression.recipe import Dense, Recipe, Recovered, is_trained
from llmkick.compression.registry import parse_recipe
from llmkick.compression.training.recover import Compressed, TrainedRecovery, check_trainable
from llmkick.compression.walk.block_sources import BlocksInMemory, put_layers
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.calibration import Calibration, as_calibration
from llmkick.compression.walk.checks import (
    WeightCounts,
    check_calibration_fits,
    check_compressible,
    check_recipe_fits,
    count_weights,
)
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.keys import kept_blocks
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.walk import Progress, Walk
from llmkick.models.checkpoints.quantized import refuse_packed_integers
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
    allow_partial: bool = False,
    progress: Progress | None = None,
    keep: Path | None = None,
    base: Path | None = None,
) -> tuple[TransformersModel, CompressionReport]:
    """Compress every linear layer inside the decoder blocks. The given model is not changed.

    calibration: a Calibration, or token ids (sequences, tokens). Methods that need none use a few of its sequences,
    if given, to measure the output error. seed: recorded in the report; the only randomness of a compression is that of
    its calibration. propagate: calibrate each block on the outputs of the compressed blocks before it, as all original
    implementations do; otherwise on those of the dense model. allow_partial: compress a model even if recipes leave
    over a tenth of the weights in its blocks dense. progress: called with the number of finished blocks and of all
    blocks. keep: a folder for finished blocks; a walk that was stopped continues from them. base: such a folder for the
    compression that a trained recovery begins with, by default one inside `keep`.
    Raises ConfigError for a recipe that does not fit the model, ModelError for a model whose blocks cannot be
    compressed one after another, NumericalError naming the layer when activations or
    weights are not finite.
    """
    recipe = _parsed(recipe)
    windows = check_all(model, [recipe], calibration, allow_partial=allow_partial)
    finished = (
        None if keep is None else kept_blocks(model.info, model.device, recipe, windows, keep, propagate=propagate)
    )
    if finished is not None and finished.report is not None:
        return restore(model, finished)
    if is_trained(recipe):
        assert isinstance(recipe, Recovered), recipe
        assert windows is not None, "checked above"
        folder = base if base is not None or finished is None else finished.folder / "base"
        options: _Options = {"seed": seed, "propagate": propagate, "allow_partial": allow_partial}
        result = _recovered(model, recipe, windows, finished, folder, options, progress=progress)
        if folder is not None and base is None:
            shutil.rmtree(folder)
        return result
    network = shallow_copy(model.network)
    output = RecipeOutput(recipe=recipe, blocks=decoder_blocks(network), finished=finished)
    if finished is not None and not propagate:
        output.blocks = None
    calibrated = network if propagate else model.network
    _walk(model, calibrated, [output], windows, propagate=propagate, allow_partial=allow_partial, progress=progress)
    if finished is not None and not propagate:
        put_all(network, finished)
    report = finish_report(model, network, output, windows, seed=seed, propagate=propagate)
    return model.with_network(network, digest=report.digest), report


class _Options(TypedDict):
    seed: int
    propagate: bool
    allow_partial: bool


def _recovered(
    model: TransformersModel,
    recipe: Recovered,
    windows: Calibration,
    finished: FinishedBlocks | None,
    folder: Path | None,
    options: _Options,
    *,
    progress: Progress | None,
) -> tuple[TransformersModel, CompressionReport]:
    """Compress by the base of a trained recovery, then train. folder: for the finished blocks of the base."""
    compressed, report = compress(
        model, recipe.base, calibration=windows, keep=folder, progress=_half(progress, first=True), **options
    )
    kept = None
    if folder is not None:
        device, propagate = model.device, options["propagate"]
        kept = kept_blocks(model.info, device, recipe.base, windows, folder, propagate=propagate)
    blocks = len(decoder_blocks(model.network))
    half = _half(progress, first=False)
    return TrainedRecovery(
        dense=model,
        base=Compressed(model=compressed, report=report, finished=kept),
        recipe=recipe,
        windows=windows,
        finished=finished,
        progress=None if half is None else lambda done, total: half(done * blocks // max(1, total), blocks),
    ).run()


def _half(progress: Progress | None, *, first: bool) -> Progress | None:
    """The progress of one of two parts of a compression, both of which count all blocks."""
    if progress is None:
        return None
    return lambda done, total: progress((done if first else total + done) // 2, total)


def compress_many(
    model: TransformersModel,
    recipes: Sequence[Recipe | str],
    *,
    calibration: Calibration | npt.ArrayLike | None = None,
    seed: int = 0,
    allow_partial: bool = False,
    progress: Progress | None = None,
) -> list[tuple[TransformersModel, CompressionReport]]:
    """Compress a model by several recipes in one pass over the calibration, with statistics of the dense model.

    The results equal those of `compress` with `propagate=False` for each recipe, with one set of forwards; recipes that
    are trained come after it, each on its own. All models
    are in memory and share the weights that were not compressed; `compress_into.compress_into` holds no model.
    """
    parsed = [_parsed(recipe) for recipe in recipes]
    windows = check_all(model, parsed, calibration, allow_partial=allow_partial)
    walked = [recipe for recipe in dict.fromkeys(parsed) if not is_trained(recipe)]
    networks = [shallow_copy(model.network) for _ in walked]
    outputs = [RecipeOutput(recipe=r, blocks=decoder_blocks(n)) for r, n in zip(walked, networks, strict=True)]
    walk_by_need(model, outputs, windows, allow_partial=allow_partial, progress=progress)
    results = {}
    for output, network in zip(outputs, networks, strict=True):
        report = finish_report(model, network, output, windows, seed=seed, propagate=False)
        results[output.recipe] = (model.with_network(network, digest=report.digest), report)
    for recipe in parsed:
        if recipe not in results:
            options: _Options = {"seed": seed, "propagate": False, "allow_partial": allow_partial}
            results[recipe] = compress(model, recipe, calibration=windows, **options)
    return [results[recipe] for recipe in parsed]


def restore(model: TransformersModel, finished: FinishedBlocks) -> tuple[TransformersModel, CompressionReport]:
    """The compressed model, from all its finished blocks and the dense model that it was made from."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    network = shallow_copy(model.network)
    put_all(network, finished)
    return model.with_network(network, digest=finished.report.digest), finished.report


def check_all(
    model: TransformersModel,
    recipes: Sequence[Recipe],
    calibration: Calibration | npt.ArrayLike | None,
    *,
    allow_partial: bool = False,
) -> Calibration | None:
    """The calibration, after all checks: raises ConfigError, ModelError or NumericalError before any work is done."""
    windows = None if calibration is None else as_calibration(calibration)
    if model.checkpoint is not None:
        refuse_packed_integers(model.checkpoint)
    blocks = decoder_blocks(model.network)
    if not all(isinstance(recipe, Dense) for recipe in recipes):
        check_compressible(model.network, blocks, allow_partial=allow_partial)
    for recipe in recipes:
        check_recipe_fits(recipe, blocks, windows)
        check_trainable(recipe, model)
    if windows is not None:
        check_calibration_fits(windows, model)
    check_finite(model.network)
    return windows


def make_report(
    output: RecipeOutput,
    info: ModelInfo,
    windows: Calibration | None,
    weights: WeightCounts,
    *,
    seed: int,
    propagate: bool,
    digest: str,
) -> CompressionReport:
    """The report of a recipe whose blocks are all finished."""
    used = windows if output.recipe.needs_calibration else None
    compressed = output.compressed_weights
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
        block_share=compressed / weights.blocks,
        model_share=compressed / weights.model,
        routers=weights.routers,
        recovery=output.recovery_report(windows),
    )


def _parsed(recipe: Recipe | str) -> Recipe:
    return parse_recipe(recipe) if isinstance(recipe, str) else recipe


def walk_by_need(
    model: TransformersModel,
    outputs: list[RecipeOutput],
    windows: Calibration | None,
    *,
    allow_partial: bool,
    progress: Progress | None,
) -> None:
    """One walk for the recipes that need calibration, one for those that only measure errors on a few sequences."""
    calibrated = [output for output in outputs if output.recipe.needs_calibration]
    others = [o for o in outputs if not o.recipe.needs_calibration and not isinstance(o.recipe, Dense)]
    for group in (calibrated, others):
        if group:
            _walk(model, model.network, group, windows, propagate=False, allow_partial=allow_partial, progress=progress)


def _walk(
    model: TransformersModel,
    network: nn.Module,
    outputs: list[RecipeOutput],
    windows: Calibration | None,
    *,
    propagate: bool,
    allow_partial: bool,
    progress: Progress | None,
) -> None:
    Walk(
        network=network,
        source=BlocksInMemory(blocks=decoder_blocks(network)),
        outputs=outputs,
        device=model.device,
        propagate=propagate,
        allow_partial=allow_partial,
        progress=progress,
    ).run(windows)


def put_all(network: nn.Module, finished: FinishedBlocks) -> None:
    """Put the weights of all finished blocks into a network."""
    for index, block in enumerate(decoder_blocks(network)[: finished.count]):
        put_layers(block, finished.weights(index))


def finish_report(
    model: TransformersModel,
    network: nn.Module,
    output: RecipeOutput,
    windows: Calibration | None,
    *,
    seed: int,
    propagate: bool,
) -> CompressionReport:
    """The report of a recipe whose weights are in `network`; it is kept with the finished blocks."""
    digest = model.info.digest if isinstance(output.recipe, Dense) else weights_digest(network)
    weights = count_weights(network, decoder_blocks(network))
    report = make_report(output, model.info, windows, weights, seed=seed, propagate=propagate, digest=digest)
    if output.finished is not None:
        output.finished.complete(report)
    return report
