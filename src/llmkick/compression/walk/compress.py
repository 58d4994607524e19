"""Compressing a model in memory: by one recipe, by several in one pass, or from blocks that are kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy.typing as npt
from torch import nn

from llmkick.compression.recipe import Dense, Recipe, Recovered, is_trained
from llmkick.compression.registry import parse_recipe
from llmkick.compression.training.recover import check_trainable, check_training
from llmkick.compression.walk.block_sources import BlocksInMemory, kept_weights, put_layers
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.calibration import Calibration, as_calibration
from llmkick.compression.walk.checks import (
    check_calibration_fits,
    check_compressible,
    check_recipe_fits,
    count_weights,
    refuse_several,
)
from llmkick.compression.walk.compress_and_train import WalkOptions, compress_and_train
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.processes import ALONE, Processes, joined_processes
from llmkick.compression.walk.recipe_output import RecipeOutput, make_report
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.walk import Progress, Walk
from llmkick.models.checkpoints.quantized import refuse_packed_integers
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

    If torch.distributed has been initialised, all processes call this with the same arguments, share the work, and
    return the same; only the first writes to `keep`.

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
    with joined_processes() as processes, processes.together():
        return compress_in_processes(
            processes, model, _parsed(recipe), calibration=calibration, seed=seed, propagate=propagate,
            allow_partial=allow_partial, progress=progress, keep=keep, base=base,
        )  # fmt: skip


def compress_in_processes(
    processes: Processes,
    model: TransformersModel,
    recipe: Recipe,
    *,
    calibration: Calibration | npt.ArrayLike | None,
    seed: int,
    propagate: bool,
    allow_partial: bool,
    progress: Progress | None,
    keep: Path | None,
    base: Path | None = None,
) -> tuple[TransformersModel, CompressionReport]:
    """`compress` in processes that know of each other."""
    refuse_several(recipe, processes)
    windows = check_all(model, [recipe], calibration, allow_partial=allow_partial)
    finished = None
    if keep is not None and processes.is_first:
        finished = kept_blocks(
            model.info, model.device, recipe, windows, keep, propagate=propagate, processes=processes.count
        )
    is_kept, is_complete, resumed = processes.from_first(
        [False, False, 0] if finished is None else [True, finished.report is not None, finished.count]
    )
    if is_trained(recipe) and not is_complete:
        assert isinstance(recipe, Recovered), recipe
        assert windows is not None, "checked above"
        options: WalkOptions = {"seed": seed, "propagate": propagate, "allow_partial": allow_partial}
        return compress_and_train(
            partial(compress_in_processes, ALONE), model, recipe, windows, finished, base, options, progress=progress
        )
    network = shallow_copy(model.network)
    if is_complete:
        report = _report_of_first(processes, None if finished is None else finished.report)
        put_all(network, finished, processes)
        return model.with_network(network, digest=report.digest), report
    output = RecipeOutput(recipe=recipe, blocks=decoder_blocks(network), finished=finished, resumed=resumed)
    if is_kept and not propagate:
        output.blocks = None
    calibrated = network if propagate else model.network
    _walk(
        model, calibrated, [output], windows, propagate=propagate, allow_partial=allow_partial, progress=progress,
        processes=processes,
    )  # fmt: skip
    if is_kept and not propagate:
        put_all(network, finished, processes)
    report = finish_report(model, network, output, windows, seed=seed, propagate=propagate, processes=processes.count)
    report = _report_of_first(processes, report)
    return model.with_network(network, digest=report.digest), report


def _report_of_first(processes: Processes, report: CompressionReport | None) -> CompressionReport:
    """The report of the first process: that of others has other seconds, and no finished blocks of an earlier start."""
    values = processes.from_first(None if report is None else report.to_json())
    return report if report is not None and processes.is_first else CompressionReport.from_json(values)


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
            options: WalkOptions = {"seed": seed, "propagate": False, "allow_partial": allow_partial}
            results[recipe] = compress_in_processes(
                ALONE, model, recipe, calibration=windows, progress=None, keep=None, **options
            )
    return [results[recipe] for recipe in parsed]


def restore(model: TransformersModel, finished: FinishedBlocks) -> tuple[TransformersModel, CompressionReport]:
    """The compressed model, from all its finished blocks and the dense model that it was made from."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    network = shallow_copy(model.network)
    put_all(network, finished, ALONE)
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
            check_training(recipe, *windows.tokens.shape)
    if windows is not None:
        check_calibration_fits(windows, model)
    check_finite(model.network)
    return windows


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
    processes: Processes = ALONE,
) -> None:
    Walk(
        network=network,
        source=BlocksInMemory(blocks=decoder_blocks(network)),
        outputs=outputs,
        device=model.device,
        propagate=propagate,
        allow_partial=allow_partial,
        progress=progress,
        processes=processes,
    ).run(windows)


def put_all(network: nn.Module, finished: FinishedBlocks | None, processes: Processes) -> None:
    """Put the weights of all finished blocks, which the first process has, into a network."""
    count = processes.from_first(None if finished is None else finished.count)
    for index, block in enumerate(decoder_blocks(network)[:count]):
        put_layers(block, kept_weights(processes, finished, index, block))


def finish_report(
    model: TransformersModel,
    network: nn.Module,
    output: RecipeOutput,
    windows: Calibration | None,
    *,
    seed: int,
    propagate: bool,
    processes: int = 1,
) -> CompressionReport:
    """The report of a recipe; it is kept with the finished blocks.

    network: has the compressed weights, except those whose digests the finished blocks know.
    """
    known = {} if output.finished is None else output.finished.digests
    digest = model.info.digest if isinstance(output.recipe, Dense) else weights_digest(network, known)
    weights = count_weights(network, decoder_blocks(network))
    report = make_report(
        output, model.info, windows, weights, seed=seed, propagate=propagate, digest=digest, processes=processes
    )
    if output.finished is not None:
        output.finished.complete(report)
    return report
