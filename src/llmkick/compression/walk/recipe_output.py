"""One recipe of a walk: it compresses layer after layer, and keeps the weights and what the report will say."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkick.compression.kernels.layer import LayerRecovery, WeightResult
from llmkick.compression.recipe import NM, Dense, Grid, Recipe, Recovered, Unstructured
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.finished_blocks import BlockFinish, FinishedBlocks, Tally
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.report import LayerErrors, LayerReport, RecoveryReport
from llmkick.compression.walk.size import compact_bytes
from llmkick.compression.walk.weight import compress_with_statistics, relative_output_error
from llmkick.models.checkpoints.packed import Codes, Packed, pack, with_adapter

# The report names an expert that was calibrated on fewer tokens than this.
FEW_TOKENS = 32


@dataclass(kw_only=True)
class RecipeOutput:
    """One recipe of a walk: where its compressed layers go, and the tally of them.

    blocks: of a network in memory, whose layers are replaced. finished: a folder in which finished blocks are kept,
    and whose tally is continued. windows: how many calibration windows this output uses, from the first on; None: all.
    """

    recipe: Recipe
    blocks: list[Block] | None = None
    finished: FinishedBlocks | None = None
    windows: int | None = None
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.finished is not None:
            self.tally = self.finished.tally

    @property
    def finished_count(self) -> int:
        """How many blocks were finished before this walk began, or have been since."""
        return 0 if self.finished is None else self.finished.count

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

    def compress_layer(
        self, layer: LinearLayer, record: InputRecord, packed: dict[str, Future[Packed]]
    ) -> Tensor | None:
        """The compressed weight (out, in), None for a layer that is left dense; both are added to the tally.

        With a folder for finished blocks the compact form of the layer is put into `packed`, as it will be.
        """
        result = self._compress(layer, record)
        if self.finished is not None:
            kept, recipe = (WeightResult(layer.weight), Dense()) if result is None else (result, self.recipe)
            packed[layer.name] = self.finished.soon(pack_result, layer, kept, recipe)
        return None if result is None else result.weight

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

    def _compress(self, layer: LinearLayer, record: InputRecord) -> WeightResult | None:
        statistics = record.statistics_of(layer)
        tokens = 0 if statistics is None else statistics.tokens
        if self.recipe.needs_calibration and tokens == 0:
            # An expert that no calibration token reached: nothing to choose by, so it stays dense and the user is told.
            self.tally.warnings.append(f"left dense: {layer.name} saw no calibration token")
            self._add_to_tally(layer, WeightResult(layer.weight), record, Dense())
            return None
        if layer.form == "expert" and self.recipe.needs_calibration and tokens < FEW_TOKENS:
            self.tally.warnings.append(f"few tokens: {layer.name} was calibrated on {tokens} tokens")
        result = compress_with_statistics(layer.weight, statistics, self.recipe, name=layer.name)
        self._add_to_tally(layer, result, record, self.recipe)
        return result

    def _add_to_tally(self, layer: LinearLayer, result: WeightResult, record: InputRecord, recipe: Recipe) -> None:
        """Report a layer before its weight is replaced; `recipe` is the one that was applied."""
        sample, statistics = record.sample_of(layer), record.statistics_of(layer)
        dense, weight = layer.weight, result.weight
        recovery = result.recovery or LayerRecovery(None, None, 0.0)
        rows, columns = dense.shape
        # An adapter fills the zeros of what the network computes with, not those of what is stored.
        stored = weight if recovery.base is None else recovery.base
        sparsity = 1 - int(torch.count_nonzero(stored != 0)) / weight.numel()  # far faster than of 16-bit floats
        self.tally.layers.append(
            LayerReport(
                name=layer.name,
                shape=(rows, columns),
                realised_sparsity=sparsity,
                relative_output_error=None if sample is None else relative_output_error(dense, weight, sample),
                damping=result.damping,
                tokens=0 if statistics is None else statistics.tokens,
            )
        )
        if result.recovery is not None:
            errors = LayerErrors(name=layer.name, before=recovery.error_before, after=recovery.error_after)
            self.tally.recovered.append(errors)
        adapter_bytes = 0 if recovery.adapter is None else recovery.adapter.size
        self.tally.adapter_bytes += adapter_bytes
        self.tally.recovery_seconds += recovery.seconds
        self.tally.dense_bytes += dense.numel() * dense.element_size()
        self.tally.stored_bytes += adapter_bytes + compact_bytes(
            (rows, columns), dense.element_size(), recipe, sparsity
        )


def pack_result(layer: LinearLayer, result: WeightResult, recipe: Recipe) -> Packed:
    """A compressed layer in the compact form that its recipe allows."""
    pattern = next((part for part in recipe.parts if isinstance(part, NM)), None)
    codes = None
    if result.grid is not None and result.codes is not None and result.grid.bits <= 8:
        grid = result.grid
        symmetric = any(isinstance(part, Grid) and part.symmetric for part in recipe.parts)
        codes = Codes(
            codes=result.codes, scale=grid.scale, zero=grid.zero, bits=grid.bits, group=grid.group, symmetric=symmetric
        )
    recovery = result.recovery
    packed = pack(
        result.weight if recovery is None or recovery.base is None else recovery.base,
        codes=codes,
        masked=any(isinstance(part, Unstructured) for part in recipe.parts),
        pattern=None if pattern is None else (pattern.kept, pattern.group),
        place=layer.place,
    )
    if recovery is None or recovery.adapter is None:
        return packed
    return with_adapter(packed, recovery.adapter, result.weight)
