"""From the name of a model to a compressed model on disk, in as little memory as possible."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

from llmkick.compression.recipe import Dense, Recipe, Recovered, is_trained
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.assistance import WalkOptions, assist, report_to_all
from llmkick.compression.storage.cache import (
    entry_bytes,
    entry_for,
    folder_of,
    has_begun,
    matrices_bytes,
    name_of,
    on_one_disk,
    progress_in,
    still_needed,
)
from llmkick.compression.storage.compressed_tensors import check_exportable, check_storable
from llmkick.compression.storage.folder import can_share, report_of
from llmkick.compression.storage.outputs import Form, Output
from llmkick.compression.storage.peft_adapter import check_has_adapter, check_plain_names
from llmkick.compression.storage.shards import size_of
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.storage.target import delete_left
from llmkick.compression.storage.whole_model import check_memory, load_whole
from llmkick.compression.training.recover import check_training
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.calibration import Calibration, as_calibration, calibrate, chosen_source
from llmkick.compression.walk.checks import check_compressible, check_recipe_fits, refuse_several
from llmkick.compression.walk.compress import compress_in_processes
from llmkick.compression.walk.compression_key import kept_blocks, kept_key
from llmkick.compression.walk.finished_blocks import FinishedBlocks, delete_blocks, is_finished
from llmkick.compression.walk.processes import Processes, joined_processes
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.self_sampling import is_sampled
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.meta_model import MetaModel, load_meta_model
from llmkick.models.checkpoints.quantized import refuse_packed_integers
from llmkick.models.transformers_model import TransformersModel
from llmkick.output_folder import check_target, claimed, hidden_folders


class StageObserver(Protocol):
    """Receives the progress of a compression."""

    def stage(self, title: str, total: int) -> None:
        """A stage of `total` steps begins."""
        ...

    def advance(self, done: int) -> None:
        """The number of finished steps of the stage."""
        ...


class _StreamOptions(TypedDict):
    calibration: Calibration | None
    seed: int
    propagate: bool
    allow_partial: bool
    progress: Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """The text to calibrate on; the fields are arguments of `calibrate`."""

    source: str = "auto"
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
    form: "folder" for a Hugging Face checkpoint, "packed" for the compact form of llmkick, "compressed-tensors", or
    "adapter" for a Hugging Face checkpoint of the compressed weights with an adapter of peft for what was recovered.
    on_model: called with the structure of the model before the work starts. Other arguments and errors as in
    `calibrate`, `compress` and `load_model`; errors are raised before any work where possible.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    plan = calibration or CalibrationPlan()
    walk = WalkOptions(recipe=recipe, seed=plan.seed, propagate=propagate, allow_partial=allow_partial)
    with joined_processes() as processes, processes.together(), contextlib.ExitStack() as release:
        if not processes.is_first:
            return assist(processes, reference, walk, device)
        check_target(folder)
        if isinstance(recipe, Dense):
            raise ConfigError("dense compresses nothing: the model's folder is what you want")
        release.enter_context(claimed(folder))
        delete_left(folder)
        observer.stage(f"reading {reference}", 1)
        meta_model = load_meta_model(reference, dtype=dtype, device=device)
        processes.from_first([meta_model.info.dtype, meta_model.info.digest])
        refuse_several(recipe, processes)
        stored = _check_all(meta_model, walk, plan, form)
        on_model(meta_model)
        windows = _windows(meta_model, plan, observer) if recipe.needs_calibration else None
        processes.from_first(None if windows is None else [windows.tokens.tolist(), windows.source, windows.seed])
        output = Output(folder=folder, form=form, stored=stored, recipe=recipe)
        report = _compress_into_folder(processes, meta_model, walk, windows, output, observer)
        return report_to_all(processes, report)


def _check_all(meta_model: MetaModel, walk: WalkOptions, plan: CalibrationPlan, form: Form) -> StoredModel:
    """Raise what can be known before the calibration, which may take minutes. Returns how the model is stored."""
    refuse_packed_integers(meta_model.checkpoint)
    blocks = decoder_blocks(meta_model.model.network)
    check_compressible(meta_model.model.network, blocks, allow_partial=walk.allow_partial)
    check_recipe_fits(walk.recipe, blocks, as_calibration([[0, 0]]))
    if is_trained(walk.recipe):
        check_training(walk.recipe, plan.sequences, plan.length)
        check_memory(meta_model, to_compress=True, trains=True)
    stored = StoredModel(meta_model.model, meta_model.files)
    if form != "packed":
        stored.form.refuse_unreadable()
    if form == "compressed-tensors":
        check_exportable(walk.recipe, blocks)
        check_storable(meta_model.model, blocks, stored)
    if form == "adapter":
        check_has_adapter(walk.recipe, blocks)
        check_plain_names(stored, blocks)
    return stored


def _compress_into_folder(
    processes: Processes,
    meta_model: MetaModel,
    walk: WalkOptions,
    windows: Calibration | None,
    output: Output,
    observer: StageObserver,
) -> CompressionReport:
    """Compress a model, and write it into the folder in one of the forms."""
    recipe, progress, folder, form = walk.recipe, _progress_of(observer), output.folder, output.form
    identity = meta_model.info, meta_model.device, recipe, windows
    key = kept_key(*identity, propagate=walk.propagate, processes=processes.count)
    blocks = decoder_blocks(meta_model.model.network)
    size, room = entry_bytes(recipe, blocks), _Room(folder, _output_bytes(meta_model, blocks, recipe, form))
    observer.stage(f"compressing {recipe}", len(blocks))
    options: _StreamOptions = {
        "calibration": windows,
        "seed": walk.seed,
        "propagate": walk.propagate,
        "allow_partial": walk.allow_partial,
        "progress": progress,
    }
    with contextlib.ExitStack() as stack:
        base: Path | None = None
        if isinstance(recipe, Recovered) and is_trained(recipe):
            of_base = kept_key(*identity[:2], recipe.base, windows, propagate=walk.propagate)
            size_of_base = entry_bytes(recipe.base, blocks)
            others = still_needed(folder_of(of_base), size_of_base, len(blocks))
            work = stack.enter_context(_work_folder(key, size, room, others))
            others = still_needed(work, size, len(blocks))
            base = stack.enter_context(_work_folder(of_base, size_of_base, room, others))
        else:
            work = stack.enter_context(_work_folder(key, size, room))
        model: MetaModel | TransformersModel = meta_model
        if meta_model.obstacle is None and base is None:
            finished, report = _stream(processes, meta_model, output, work, size, options, observer)
            if report is not None:
                return report
        else:
            whole = load_whole(meta_model, to_compress=True, trains=base is not None)
            model, _ = compress_in_processes(processes, whole, recipe, keep=work, base=base, **options)
            finished = kept_blocks(*identity, work, propagate=walk.propagate, processes=processes.count)
        observer.stage(f"writing {folder}", 1)
        return output.save(model, finished)


def _stream(
    processes: Processes,
    meta_model: MetaModel,
    output: Output,
    work: Path,
    size: int,
    options: _StreamOptions,
    observer: StageObserver,
) -> tuple[FinishedBlocks, CompressionReport | None]:
    """Compress block by block, and write the folder meanwhile. The report is None where that is still to be done.

    work: the folder of the finished blocks. size: about the bytes of all of them.
    """
    recipe = output.recipe
    is_complete = is_finished(work)
    if is_complete and output.form != "folder":  # all that the form needs of the blocks is in their files
        return compress_streamed(meta_model, recipe, work, processes=processes, **options), None
    shares_disk, count = on_one_disk(work, output.folder), len(decoder_blocks(meta_model.model.network))
    left = still_needed(work, size, count) if shares_disk else 0
    with output.streamed(meta_model, besides=left, blocks=0 if can_share(work, output.folder) else size) as target:
        finished = compress_streamed(meta_model, recipe, work, sink=target.put, processes=processes, **options)
        if not target.fits:
            return finished, None
        observer.stage(f"writing {output.folder}", 1)
        return finished, target.finish(report_of(finished))


def _windows(meta_model: MetaModel, plan: CalibrationPlan, observer: StageObserver) -> Calibration:
    """The calibration windows. The model is loaded only if it must sample them, and freed afterwards."""
    observer.stage("calibration text", plan.sequences * plan.length)
    model = meta_model.model
    size = {"sequences": plan.sequences, "length": plan.length, "seed": plan.seed}
    source = chosen_source(plan.source, meta_model.info, meta_model.device)
    if source == "self" and not is_sampled(model, **size):
        model = load_whole(meta_model, to_compress=False)
    return calibrate(model, source=source, progress=_progress_of(observer), **size)


def _progress_of(observer: StageObserver) -> Callable[[int, int], None]:
    return lambda done, _total: observer.advance(done)


@dataclass(frozen=True)
class _Room:
    """The target, and about how many bytes will be written there."""

    folder: Path
    size: int


def _output_bytes(meta_model: MetaModel, blocks: list[Block], recipe: Recipe, form: Form) -> int:
    """About the size of the target."""
    if form in ("folder", "adapter"):
        return meta_model.bytes + (matrices_bytes(recipe, blocks) if form == "adapter" else 0)
    compressed = sum(size_of(layer.weight) for block in blocks for layer in block.layers)
    return meta_model.bytes - compressed + entry_bytes(recipe, blocks)


@contextlib.contextmanager
def _work_folder(key: Mapping[str, Any], needed_bytes: int, target: _Room, others: int = 0) -> Iterator[Path]:
    """The folder for finished blocks: in the cache of compressed models, or beside the target if that has no room.

    A compression that has begun in one of these places goes on there, wherever there would be room now. others: bytes
    that another such folder will take.
    """
    places, cached = hidden_folders(target.folder, name_of(key)[:8]), folder_of(key)
    begun = max(places, key=progress_in)
    goes_on_beside = progress_in(begun) > progress_in(cached)
    besides = others + (target.size if on_one_disk(cached, target.folder) else 0)
    with contextlib.nullcontext() if goes_on_beside else entry_for(key, needed_bytes, besides=besides) as entry:
        yield entry if entry is not None else begun if has_begun(begun) else places[0]
        for place in places:
            delete_blocks(place)
