"""From the name of a model to a compressed model on disk, in as little memory as possible."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import psutil
import torch

from llmkick.compression.recipe import Dense, Recipe, Recovered, is_trained
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.cache import entry_for, folder_of
from llmkick.compression.storage.compressed_tensors import check_exportable, check_storable, save_compressed_tensors
from llmkick.compression.storage.folder import StreamedFolder, check_target, report_of, save_folder, save_packed
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.training.student import import_peft
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration, as_calibration, calibrate, chosen_source
from llmkick.compression.walk.checks import check_compressible, check_recipe_fits
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.keys import kept_blocks, kept_key
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.self_sampling import is_sampled
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_located
from llmkick.models.checkpoints.meta_model import MetaModel, load_meta_model
from llmkick.models.checkpoints.quantized import refuse_packed_integers
from llmkick.models.precision import BALANCED
from llmkick.models.transformers_model import TransformersModel

# Memory that a compression takes beside a model that is loaded whole, in sizes of its weights (measured with
# `benchmarks/memory.py --mixture`): a compressed copy, and on the host what is being packed.
COPIES_OF_COMPRESSION = 1.5
HOST_COPIES = 0.4  # the part of these that a GPU does not hold
COPIES_OF_TRAINING = 3.0  # the compressed and the recovered copy, and what the training keeps for its gradients

Form = Literal["folder", "packed", "compressed-tensors"]


class StageObserver(Protocol):
    """Receives the progress of a compression."""

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        ...

    def advance(self, done: int) -> None:
        """The number of finished steps of the stage."""
        ...


class _WalkOptions(TypedDict):
    seed: int
    propagate: bool
    allow_partial: bool
    progress: Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """The text to calibrate on; the fields are arguments of `calibrate`."""

    source: str = "self"
    sequences: int = 32
    length: int = 512
    seed: int = 0


def compress_checkpoint(
    reference: str,
    recipe: Recipe | str,
    folder: Path,
    *,
    form: Form = "folder",
    calibration: CalibrationPlan | None = None,
    propagate: bool = True,
    allow_partial: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    observer: StageObserver,
    on_model: Callable[[MetaModel], None] = lambda model: None,
) -> CompressionReport:
    """Compress a model into a new folder. Called again after it was stopped, it continues at the unfinished block.

    Blocks are read, compressed and kept one at a time if the files allow it (see `MetaModel.obstacle`).
    form: "folder" for a Hugging Face checkpoint, "packed" for the compact form of llmkick, or "compressed-tensors".
    on_model: called with the structure of the model before the work starts. Other arguments and errors as in
    `calibrate`, `compress` and `load_model`; errors are raised before any work where possible.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    plan = calibration or CalibrationPlan()
    check_target(folder)
    if isinstance(recipe, Dense):
        raise ConfigError("dense compresses nothing: the model's folder is what you want")
    observer.stage(f"reading {reference}", 1)
    meta_model = load_meta_model(reference, dtype=dtype, device=device)
    _check(meta_model, recipe, form, allow_partial=allow_partial)
    on_model(meta_model)
    windows = _windows(meta_model, plan, observer) if recipe.needs_calibration else None
    key = kept_key(meta_model.info, meta_model.device, recipe, windows, propagate=propagate)
    observer.stage(f"compressing {recipe}", len(decoder_blocks(meta_model.model.network)))
    options: _WalkOptions = {
        "seed": plan.seed,
        "propagate": propagate,
        "allow_partial": allow_partial,
        "progress": _progress_of(observer),
    }
    with _work_folder(key, meta_model.bytes, folder) as work, contextlib.ExitStack() as stack:
        base: Path | None = None
        if isinstance(recipe, Recovered) and is_trained(recipe):
            key = kept_key(meta_model.info, meta_model.device, recipe.base, windows, propagate=propagate)
            base = stack.enter_context(_work_folder(key, meta_model.bytes, folder))
        elif meta_model.obstacle is None and form == "folder":
            with StreamedFolder(meta_model, folder) as target:
                kept = compress_streamed(meta_model, recipe, work, calibration=windows, sink=target.put, **options)
                observer.stage(f"writing {folder}", 1)
                return target.finish(report_of(kept))
        model = _compressed(meta_model, recipe, work, base, windows, options)
        finished = kept_blocks(meta_model.info, meta_model.device, recipe, windows, work, propagate=propagate)
        observer.stage(f"writing {folder}", 1)
        return _save(model, recipe, finished, folder, form)


def _check(meta_model: MetaModel, recipe: Recipe, form: Form, *, allow_partial: bool) -> None:
    """Raise an error for what can be known to fail before the calibration, which may take minutes."""
    refuse_packed_integers(meta_model.checkpoint)
    blocks = decoder_blocks(meta_model.model.network)
    check_compressible(meta_model.model.network, blocks, allow_partial=allow_partial)
    check_recipe_fits(recipe, blocks, as_calibration([[0, 0]]))
    if is_trained(recipe):
        import_peft()
        _check_memory(meta_model, COPIES_OF_TRAINING, f"{recipe} trains it as a whole")
    if form != "packed":
        StoredModel(meta_model.model).form.refuse_unreadable()
    if form == "compressed-tensors":
        check_exportable(recipe, blocks)
        check_storable(meta_model.model, blocks)


def _compressed(
    meta_model: MetaModel,
    recipe: Recipe,
    work: Path,
    base: Path | None,
    windows: Calibration | None,
    options: _WalkOptions,
) -> MetaModel | TransformersModel:
    """Compress into a folder of finished blocks; returns the model with the weights that no recipe changes.

    base: such a folder for the compression that a trained recovery begins with.
    """
    if meta_model.obstacle is None and not is_trained(recipe):
        compress_streamed(meta_model, recipe, work, calibration=windows, **options)
        return meta_model
    copies = COPIES_OF_COMPRESSION if base is None else COPIES_OF_TRAINING
    model = _loaded(meta_model, copies, meta_model.obstacle or f"{recipe} trains it as a whole")
    return compress(model, recipe, calibration=windows, keep=work, base=base, **options)[0]


def _save(
    model: MetaModel | TransformersModel, recipe: Recipe, finished: FinishedBlocks, folder: Path, form: Form
) -> CompressionReport:
    match form:
        case "packed":
            return save_packed(model, finished, folder)
        case "compressed-tensors":
            return save_compressed_tensors(model, recipe, finished, folder)
        case "folder":
            assert isinstance(model, TransformersModel), "a meta model is written while it is compressed"
            return save_folder(model, report_of(finished), folder)


def _windows(meta_model: MetaModel, plan: CalibrationPlan, observer: StageObserver) -> Calibration:
    """The calibration windows. The model is loaded only if it must sample them, and freed afterwards."""
    observer.stage("calibration text", plan.sequences * plan.length)
    model = meta_model.model
    size = {"sequences": plan.sequences, "length": plan.length, "seed": plan.seed}
    source = chosen_source(plan.source, meta_model.info, meta_model.device)
    if source == "self" and not is_sampled(model, **size):
        why = "it is to sample its own calibration text; give --calibration FILE, a folder or c4"
        model = _loaded(meta_model, 0.0, why)
    return calibrate(model, source=source, progress=_progress_of(observer), **size)


def _progress_of(observer: StageObserver) -> Callable[[int, int], None]:
    return lambda done, _total: observer.advance(done)


def _loaded(meta_model: MetaModel, copies: float, why: str) -> TransformersModel:
    """The whole model in memory. Raises ConfigError where it cannot fit."""
    _check_memory(meta_model, copies, why)
    return load_located(meta_model.checkpoint, dtype=meta_model.info.dtype, device=meta_model.placement)


def _check_memory(meta_model: MetaModel, copies: float, why: str) -> None:
    """Raise ConfigError where the model and what is made beside it, in sizes of its weights, do not fit."""
    free, needed = _free_bytes(meta_model), _needed_bytes(meta_model, copies)
    if needed > free:
        raise ConfigError(
            f"{meta_model.info.name} needs {needed / 1e9:.1f} GB on {meta_model.placement}, of which "
            f"{free / 1e9:.1f} GB are free, and must be loaded whole: {why}"
        )


def _needed_bytes(meta_model: MetaModel, copies: float) -> int:
    """Memory that the whole model takes, and what is made beside it: on a GPU without what is packed on the host."""
    if meta_model.device.type == "cuda":
        return int((1 + copies - (HOST_COPIES if copies else 0)) * meta_model.bytes)
    stored = meta_model.files.stored_bytes
    # Files are mapped, and of tensors that are used as they are stored there is no other copy.
    is_mapped = not meta_model.groups and not meta_model.checkpoint.packed and stored <= 1.1 * meta_model.bytes
    loaded = meta_model.bytes + (0 if is_mapped else stored)
    return loaded + int(copies * meta_model.bytes)


def _free_bytes(meta_model: MetaModel) -> int:
    """Free memory on the devices where the whole model would be loaded."""
    if meta_model.device.type != "cuda":
        return int(psutil.virtual_memory().available)
    cards = range(torch.cuda.device_count()) if meta_model.placement == BALANCED else [meta_model.device]
    return sum(torch.cuda.mem_get_info(card)[0] for card in cards)


@contextlib.contextmanager
def _work_folder(key: Mapping[str, Any], needed_bytes: int, folder: Path) -> Iterator[Path]:
    """The folder for finished blocks: in the cache of compressed models, or beside the target if that has no room."""
    with entry_for(key, needed_bytes) as cached:
        if cached is not None:
            yield cached
            return
        work = folder.parent / f".{folder.name}.{folder_of(key).name[:8]}.partial"
        yield work
        shutil.rmtree(work)
