"""One recipe of a walk: it compresses layer after layer, and keeps the weights and what the report will say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkick.compression.kernels.layer import WeightResult
from llmkick.compression.recipe import NM, Dense, Grid, Recipe, Recovered, Unstructured
from llmkick.compression.recoveries import Reconstruct
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import WeightCounts
from llmkick.compression.walk.finished_blocks import FinishedBlocks, Tally
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.layer_notes import LayerNote, UnreadNote
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.network_parts import BlockFinish
from llmkick.compression.walk.report import CompressionReport, LayerErrors, LayerReport, RecoveryReport
from llmkick.compression.walk.solved_layer import SolvedLayer
from llmkick.compression.walk.weight import compress_alike, compress_with_statistics, output_squares
from llmkick.models.checkpoints.packed import Codes, Packed, pack
from llmkick.models.finite import is_finite
from llmkick.models.language_model import ModelInfo
from llmkick.models.weights import PartedDigest

# A refit of kept weights is noted if it has fewer calibration tokens than this for each kept weight of a row: on other
# text it helps from 7 or 8 on (measured on the built-in model, docs/recovery.md).
REFIT_TOKENS = 10
# The report names an expert that was calibrated on fewer tokens than this.
FEW_TOKENS = 32


@dataclass(kw_only=True)
class RecipeOutput:
    """One recipe of a walk: where its compressed layers go, and the tally of them.

    blocks: of a network in memory, whose layers are replaced. finished: a folder in which finished blocks are kept,
    and whose tally is continued. windows: how many calibration windows this output uses, from the first on; None: all.
    resumed: how many blocks were finished before the walk began, for a process that has no folder.
    """

    recipe: Recipe
    blocks: list[Block] | None = None
    finished: FinishedBlocks | None = None
    windows: int | None = None
    resumed: int = 0
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.finished is not None:
            self.tally = self.finished.tally

    @property
    def finished_count(self) -> int:
        """How many blocks were finished before this walk began, or have been since."""
        return self.resumed if self.finished is None else self.finished.count

    @property
    def compressed_weights(self) -> int:
        """How many weights were compressed: without those of experts that no calibration token reached."""
        if isinstance(self.recipe, Dense):
            return 0
        return sum(
            math.prod(layer.shape) for layer in self.tally.layers if layer.tokens or not self.recipe.needs_calibration
        )

    def recovery_report(self, windows: Calibration | None) -> RecoveryReport | None:
        """What the recovery of a recovered recipe did to all layers; None for any other recipe."""
        if not isinstance(self.recipe, Recovered):
            return None
        extra = self.tally.adapter_bytes
        return RecoveryReport(
            recovery=str(self.recipe.recovery),
            seconds=self.tally.recovery_seconds,
            tokens=0 if windows is None else windows.tokens.size,
            extra_bytes=extra,
            extra_bits_per_weight=8 * extra / max(1, self.compressed_weights),
            layers=tuple(self.tally.recovered),
        )

    def has(self, index: int) -> bool:
        """Whether block `index` is finished."""
        return self.finished_count > index

    def compresses(self, layer: LinearLayer, record: InputRecord) -> bool:
        """Whether a layer is compressed: one that no calibration token reached stays dense if the recipe needs them."""
        statistics = record.statistics_of(layer)
        return not self.recipe.needs_calibration or (statistics is not None and statistics.tokens > 0)

    def solve(self, layers: Sequence[LinearLayer], record: InputRecord) -> list[SolvedLayer]:
        """Compress layers of one shape, which are not changed, at once, and describe the results.

        The weights have been checked. Whether the results hold NaN or Inf is found when their notes are read.
        """
        statistics = [record.statistics_of(layer) for layer in layers]
        seen = [place for place, layer in enumerate(layers) if self.compresses(layer, record)]
        weights, names = [layers[place].weight for place in seen], [layers[place].name for place in seen]
        of_seen = [statistics[place] for place in seen]
        results: dict[int, WeightResult] = {}
        if len(seen) == 1:
            alone = compress_with_statistics(weights[0], of_seen[0], self.recipe, name=names[0], is_checked=False)
            results = {seen[0]: alone}
        elif seen:
            several = compress_alike(weights, of_seen, self.recipe, names, is_checked=False)
            results = dict(zip(seen, several, strict=True))
        return [self._solved(layer, results.get(place), record) for place, layer in enumerate(layers)]

    def _solved(self, layer: LinearLayer, result: WeightResult | None, record: InputRecord) -> SolvedLayer:
        if result is None:
            # An expert that no calibration token reached: nothing to choose by, so it stays dense and the user is told.
            warning = f"left dense: {layer.name} saw no calibration token"
            return _described(layer, WeightResult(layer.weight), record, Dense(), warning)
        statistics = record.statistics_of(layer)
        tokens = 0 if statistics is None else statistics.tokens
        is_thin = layer.is_of_expert and self.recipe.needs_calibration and tokens < FEW_TOKENS
        warning = f"few tokens: {layer.name} was calibrated on {tokens} tokens" if is_thin else ""
        return _described(layer, result, record, self.recipe, warning)

    def keep(self, layer: LinearLayer, solved: SolvedLayer, packed: dict[str, Future[Packed]]) -> Tensor | None:
        """The weight (out, in) of a solved layer, None for a layer that is left dense.

        With a folder for finished blocks the compact form of the layer is put into `packed`, as it will be.
        """
        if self.finished is not None:
            kept, recipe = (WeightResult(layer.weight), Dense()) if solved.is_dense else (solved.result, self.recipe)
            whole = self.finished.whole_of(layer)
            packed[layer.name] = self.finished.soon(pack_result, layer, kept, recipe, whole)
        return None if solved.is_dense else solved.result.weight

    def add_note(self, note: LayerNote) -> None:
        """Add what is to be said about a layer to the tally, in the order of the layers."""
        self.tally.layers.append(note.report)
        self.tally.warnings += note.warnings
        self.tally.dense_bytes += note.dense_bytes
        self.tally.stored_bytes += note.stored_bytes
        if note.recovered is not None:
            self.tally.recovered.append(note.recovered)
            self.tally.recovery_seconds += note.recovery_seconds
            self.tally.adapter_bytes += note.adapter_bytes

    def finish_block(
        self,
        index: int,
        block: Block,
        packed: dict[str, Future[Packed]],
        seconds: float,
        finish: BlockFinish | None = None,
    ) -> None:
        """Add what is to be said about block `index` to the tally; keep its layers where there is a folder for them.

        finish: see `FinishedBlocks.add`.
        """
        self.tally.warnings += [f"left alone: {reason}" for reason in block.dense]
        self.tally.seconds += seconds
        if self.finished is not None:
            self.finished.add(index, packed, self.tally, finish)


def _described(
    layer: LinearLayer, result: WeightResult, record: InputRecord, recipe: Recipe, warning: str
) -> SolvedLayer:
    """A result, and the report of its layer before its weight is replaced; `recipe` is the one that was applied."""
    sample, statistics = record.sample_of(layer), record.statistics_of(layer)
    dense, weight = layer.weight, result.weight
    rows, columns = dense.shape
    recovery, is_dense = result.recovery, isinstance(recipe, Dense)
    # An adapter fills the zeros of what the network computes with, not those of what is stored.
    stored = weight if recovery is None or recovery.base is None else recovery.base
    errors = None
    if recovery is not None:
        errors = LayerErrors(name=layer.name, before=recovery.error_before, after=recovery.error_after)
    note = UnreadNote(
        name=layer.name,
        shape=(rows, columns),
        dtype=dense.dtype,
        recipe=recipe,
        damping=result.damping,
        tokens=0 if statistics is None else statistics.tokens,
        warnings=(warning,) if warning else (),
        finite=None if is_dense else is_finite(weight),
        nonzero=torch.count_nonzero(stored != 0),  # far faster than of 16-bit floats
        squares=None if sample is None else output_squares(dense, weight, sample),
        recovered=errors,
        recovery_seconds=0.0 if recovery is None else recovery.seconds,
        adapter_bytes=0 if recovery is None else recovery.adapter_bytes,
    )
    return SolvedLayer(result=result, note=note, is_dense=is_dense)


def thin_refit(recipe: Recipe, layers: Sequence[LayerReport]) -> list[str]:
    """A note if kept weights were refitted on so few tokens that they fit these tokens rather than the layer."""
    if not isinstance(recipe, Recovered) or not isinstance(recipe.recovery, Reconstruct) or recipe.is_rounding:
        return []
    # Tokens that would be enough, and the layer, for layers that something was pruned from.
    wanted = [(REFIT_TOKENS * (1 - each.realised_sparsity) * each.shape[1], each) for each in layers]
    thin = [(enough, each) for enough, each in wanted if each.realised_sparsity > 0 and 0 < each.tokens < enough]
    if not thin:
        return []
    most, worst = max(thin, key=lambda pair: pair[0] / pair[1].tokens)
    return [
        f"{recipe}: {len(thin)} of {len(layers)} layers were refitted on few tokens, {worst.name} on {worst.tokens:,}, "
        f"which helps on these tokens and may harm on all others; give about {math.ceil(most):,} calibration tokens"
    ]


def make_report(
    output: RecipeOutput,
    info: ModelInfo,
    windows: Calibration | None,
    weights: WeightCounts,
    *,
    seed: int,
    propagate: bool,
    digest: str,
    processes: int = 1,
) -> CompressionReport:
    """The report of a recipe whose blocks are all finished."""
    notes = []
    if processes > 1 and output.recipe.needs_calibration:
        notes.append(
            f"calibrated by {processes} processes, whose sums are rounded in another way than those of one process: "
            "the weights are the same up to rounding"
        )
    notes += thin_refit(output.recipe, output.tally.layers)
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
        warnings=(*output.tally.warnings, *notes),
        block_share=compressed / weights.blocks,
        model_share=compressed / weights.model,
        routers=weights.routers,
        recovery=output.recovery_report(windows),
    )


def pack_result(layer: LinearLayer, result: WeightResult, recipe: Recipe, whole: PartedDigest | None = None) -> Packed:
    """A compressed layer in the compact form that its recipe allows. whole: see `packed.pack`."""
    pattern = next((part for part in recipe.parts if isinstance(part, NM)), None)
    codes = None
    if result.grid is not None and result.codes is not None and result.grid.bits <= 8:
        grid = result.grid
        symmetric = any(isinstance(part, Grid) and part.symmetric for part in recipe.parts)
        codes = Codes(
            codes=result.codes, scale=grid.scale, zero=grid.zero, bits=grid.bits, group=grid.group, symmetric=symmetric
        )
    recovery = result.recovery
    adapter = None if recovery is None else recovery.adapter
    return pack(
        result.weight if recovery is None or recovery.base is None else recovery.base,
        codes=codes,
        masked=any(isinstance(part, Unstructured) for part in recipe.parts),
        pattern=None if pattern is None else (pattern.kept, pattern.group),
        place=layer.place,
        recovered=None if adapter is None else (adapter, result.weight),
        whole=whole,
    )
