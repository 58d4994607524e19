"""The block-by-block driver: calibration forwards, statistics, kernels, and the report of what was done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmkick.compression.recipe import NM, Dense, Grid, Recipe, Unstructured
from llmkick.compression.walk.block_forward import BlockRunner, InputHooks, experts_one_by_one
from llmkick.compression.walk.blocks import Block, LinearLayer, replace_weights
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import uneven_groups
from llmkick.compression.walk.finished_blocks import FinishedBlocks, Tally
from llmkick.compression.walk.inputs import ForwardInputs, InputRecord
from llmkick.compression.walk.parallel import side_by_side
from llmkick.compression.walk.report import LayerReport
from llmkick.compression.walk.size import compact_bytes
from llmkick.compression.walk.weight import WeightResult, compress_with_statistics, relative_output_error
from llmkick.models.allocator import keep_freed_memory
from llmkick.models.checkpoints.packed import Codes, Packed, pack

# Part of every run key: raise it when the same recipe could give other weights.
WALK_VERSION = 5
# Calibration tokens run through a block at a time, and values of its widest layer's input among them. A CPU is
# busy with 2,048 tokens already, and more of them leave its cache: 63.0 s instead of 65.5 s for Wanda on one core.
BATCH_TOKENS = 8192
BATCH_TOKENS_CPU = 2048
BATCH_VALUES = 2**24
# Sequences run only to measure the output error of a method that needs no calibration.
ERROR_SEQUENCES = 4
# An expert that saw fewer tokens than this is named in the report.
FEW_TOKENS = 32

Progress = Callable[[int, int], None]


class BlockSource(Protocol):
    """Where the blocks of the network at work come from: they are in memory, or read one at a time."""

    blocks: list[Block]

    def open(self, index: int) -> contextlib.AbstractContextManager[Block]:
        """Block `index` with its weights in memory, as long as the context lasts."""
        ...

    def tidy(self) -> None:
        """Something large was let go of."""
        ...


@dataclass(kw_only=True)
class BlocksInMemory:
    """The blocks of a network that is loaded."""

    blocks: list[Block]

    def open(self, index: int) -> contextlib.AbstractContextManager[Block]:
        """The block itself."""
        return contextlib.nullcontext(self.blocks[index])

    def tidy(self) -> None:
        """Nothing: beside a whole network the rest is small."""


@dataclass(kw_only=True)
class Output:
    """One recipe of a walk: where its compressed layers go, and what is known of them."""

    recipe: Recipe
    blocks: list[Block] | None = None  # of a network in memory, whose layers are replaced
    finished: FinishedBlocks | None = None  # a folder where they are kept
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.finished is not None:
            self.tally = self.finished.tally

    def has(self, index: int) -> bool:
        """Whether block `index` was finished before this walk began."""
        return self.finished is not None and self.finished.count > index


@dataclass(kw_only=True)
class Walk:
    """One pass over the blocks for one recipe, or without propagation for several."""

    network: torch.nn.Module
    source: BlockSource
    outputs: list[Output]
    device: torch.device
    propagate: bool
    progress: Progress | None = None
    _hidden: list[Tensor | None] = field(default_factory=list)
    _batches: list[Tensor] = field(default_factory=list)
    _last: tuple[tuple[str, ...], str] | None = None  # layers of the block before, and the one that ran last
    _copies: bool = False  # whether the network changes what its layers are given

    def run(self, calibration: Calibration | None) -> None:
        """Compress all blocks in order; each output's tally tells what was done."""
        if all(isinstance(output.recipe, Dense) for output in self.outputs):
            return
        if self.device.type == "cpu":
            keep_freed_memory()
        with torch.inference_mode(False), torch.no_grad(), experts_one_by_one(self.network):
            self._lanes, self._batches = self._in_batches(calibration)
            self._runner = BlockRunner(self.network, self.source.blocks)
            self._hidden = [None] * len(self._batches)
            for index in range(self._resume(), len(self.source.blocks)):
                self._step(index)
        for output in self.outputs:
            output.tally.warnings += uneven_groups(output.recipe, self.source.blocks)

    def _in_batches(self, calibration: Calibration | None) -> tuple[int, list[Tensor]]:
        """How many batches run side by side, and the batches: (sequences, tokens) each, alike to one sequence."""
        if calibration is None:
            return 1, []
        tokens = torch.from_numpy(calibration.tokens)
        if not any(output.recipe.needs_calibration for output in self.outputs):
            tokens = tokens[:ERROR_SEQUENCES]
        count, length = tokens.shape
        widest = max(layer.weight.shape[1] for block in self.source.blocks for layer in block.layers)
        at_once, lanes = BATCH_TOKENS, 1
        if self.device.type == "cpu":
            at_once = min(BATCH_TOKENS, BATCH_TOKENS_CPU)
            lanes = max(1, min(torch.get_num_threads(), count, BATCH_VALUES // (widest * length)))
        budget = min(at_once, BATCH_VALUES // widest // lanes)
        rounds = -(-count // (lanes * max(1, budget // length)))
        batches = torch.tensor_split(tokens, min(count, rounds * lanes))
        return lanes, [batch.to(self.device) for batch in batches]

    def _resume(self) -> int:
        """The first block to be done, with its input states ready and the finished layers in place."""
        start = min(0 if output.finished is None else output.finished.count for output in self.outputs)
        kept = self.outputs[0].finished
        if start == 0 or kept is None:
            return 0
        first, states = kept.load_hidden(start) or (0, None)
        if states is not None:
            # Those of a run with another number of threads were of other batches.
            together = torch.split(torch.cat(states), [len(batch) for batch in self._batches])
            self._hidden = [state.to(self.device) for state in together]
        for index in range(start):
            # With the states at hand the weights alone are needed, and only where they stay in memory.
            if index < first and self.outputs[0].blocks is None:
                continue
            with self.source.open(index) as block:
                if self.propagate:
                    put_layers(block, kept.weights(index))
                if index >= first:
                    self._forward(index)
        self._tell(start)
        return start

    def _step(self, index: int) -> None:
        started = time.perf_counter()
        with self.source.open(index) as block:
            record = self._record(index, block)
            self.source.tidy()
            self._compress_block(index, block, record)
            if self.propagate and index + 1 < len(self.source.blocks):
                self._forward(index)
        self._keep(index, time.perf_counter() - started)
        self._tell(index + 1)

    def _record(self, index: int, block: Block) -> InputRecord:
        """Run the calibration through a block and record what its layers are given."""
        hessian = any(output.recipe.needs_hessian for output in self.outputs)
        squares = any(output.recipe.needs_squares for output in self.outputs)
        record = InputRecord(block, hessian=hessian, squares=squares, batches=len(self._batches))
        names = tuple(layer.name.removeprefix(block.name) for layer in block.layers)
        # Blocks of the same make run their layers in the same order; experts run as their tokens come.
        known = self.propagate and self._last is not None and self._last[0] == names
        last = f"{block.name}{self._last[1]}" if known and self._last is not None else None

        with InputHooks(block.layers, last=last) as hooks, self._runner.only(index) as run:

            def forward(number: int) -> tuple[Tensor | None, ForwardInputs]:
                inputs = ForwardInputs(copies=self._copies)
                with torch.no_grad(), hooks.seen_by(inputs.see):
                    return run(self._batches[number], self._hidden[number]), inputs

            for number, (output, inputs) in enumerate(side_by_side(forward, range(len(self._batches)), self._lanes)):
                if inputs.changed:
                    self._copies = True
                    output, inputs = forward(number)
                record.add(inputs)
                if not self.propagate:
                    self._hidden[number] = output
        if record.order and not any(layer.form == "expert" for layer in block.layers):
            self._last = names, record.order[-1].removeprefix(block.name)
        return record

    def _forward(self, index: int) -> None:
        with self._runner.only(index) as run:

            def forward(number: int) -> Tensor | None:
                with torch.no_grad():
                    return run(self._batches[number], self._hidden[number])

            for number, output in enumerate(side_by_side(forward, range(len(self._batches)), self._lanes)):
                self._hidden[number] = output

    def _compress_block(self, index: int, block: Block, record: InputRecord) -> None:
        """Compress all layers by all recipes, keep them, and with propagation put them in place."""
        self._packed: list[dict[str, Packed]] = [{} for _ in self.outputs]
        replaced: list[tuple[LinearLayer, Tensor]] = []
        for place, layer in enumerate(block.layers):
            for output, packed in zip(self.outputs, self._packed, strict=True):
                if output.has(index):
                    continue
                result = self._compress_layer(layer, record, output)
                if result is None:
                    if output.finished is not None:
                        packed[layer.name] = pack(layer.weight, place=layer.place)
                    continue
                if output.finished is not None:
                    packed[layer.name] = pack_result(layer, result, output.recipe)
                if self.propagate:
                    replaced.append((layer, result.weight))
                elif output.blocks is not None:
                    output.blocks[index].layers[place].replace_weight(result.weight)
            record.forget(layer, block.layers[place + 1 :])
            self.source.tidy()
        replace_weights(replaced)

    def _compress_layer(self, layer: LinearLayer, record: InputRecord, output: Output) -> WeightResult | None:
        """The compressed layer, None where it is left dense; noted in the tally either way."""
        recipe, statistics = output.recipe, record.statistics_of(layer)
        tokens = 0 if statistics is None else statistics.tokens
        if recipe.needs_calibration and tokens == 0:
            # No calibration token reached it: there is nothing to choose by, and that is not hidden.
            output.tally.warnings.append(f"left dense: {layer.name} saw no calibration token")
            _note(output.tally, layer, WeightResult(layer.weight), record, Dense())
            return None
        if layer.form == "expert" and recipe.needs_calibration and tokens < FEW_TOKENS:
            output.tally.warnings.append(f"few tokens: {layer.name} was calibrated on {tokens} tokens")
        result = compress_with_statistics(layer.weight, statistics, recipe, name=layer.name)
        _note(output.tally, layer, result, record, recipe)
        return result

    def _keep(self, index: int, seconds: float) -> None:
        for output, packed in zip(self.outputs, self._packed, strict=True):
            if output.has(index):
                continue
            output.tally.warnings += [f"left alone: {why}" for why in self.source.blocks[index].skipped]
            output.tally.seconds += seconds / len(self.outputs)
            if output.finished is not None:
                output.finished.add(index, packed, output.tally)
        first = self.outputs[0].finished
        states = [states for states in self._hidden if states is not None]
        if first is not None and states and index + 1 < len(self.source.blocks):
            first.save_hidden(index + 1, states)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.source.blocks))


def put_layers(block: Block, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Replace the layers of a block by (name, weight) pairs; those not named stay."""
    by_name = {layer.name: layer for layer in block.layers}
    replace_weights((by_name[name], weight) for name, weight in weights)


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
    return pack(
        result.weight,
        codes=codes,
        masked=any(isinstance(part, Unstructured) for part in recipe.parts),
        pattern=None if pattern is None else (pattern.kept, pattern.group),
        place=layer.place,
    )


def _note(tally: Tally, layer: LinearLayer, result: WeightResult, record: InputRecord, recipe: Recipe) -> None:
    """Note what became of a layer, before its weight is replaced; `recipe` is the one that was applied."""
    sample, statistics = record.sample_of(layer), record.statistics_of(layer)
    dense, weight = layer.weight, result.weight
    rows, columns = dense.shape
    realised = 1 - int(torch.count_nonzero(weight)) / weight.numel()
    tally.layers.append(
        LayerReport(
            name=layer.name,
            shape=(rows, columns),
            realised_sparsity=realised,
            relative_output_error=None if sample is None else relative_output_error(dense, weight, sample),
            damping=result.damping,
            tokens=0 if statistics is None else statistics.tokens,
        )
    )
    tally.dense_bytes += dense.numel() * dense.element_size()
    tally.stored_bytes += compact_bytes((rows, columns), dense.element_size(), recipe, realised)
