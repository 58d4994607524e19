"""The walk over the blocks: calibrate a block, compress its layers, pass the calibration on to the next block."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llmkick.compression.recipe import Dense
from llmkick.compression.walk.batches import CalibrationBatches, calibration_batches
from llmkick.compression.walk.block_sources import BlockSource, kept_weights, put_layers
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.calibration_pass import CalibrationPass, Records
from llmkick.compression.walk.checks import check_seen, uneven_groups
from llmkick.compression.walk.input_hooks import experts_one_by_one
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.layer_notes import LayerNote, UnreadNote, read_notes
from llmkick.compression.walk.linear_layer import LinearLayer, replace_weights
from llmkick.compression.walk.processes import ALONE, Processes
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.shared_weights import record_shared, shared_layers
from llmkick.compression.walk.solved_layer import SolvedLayer, solved_at_once, solved_by_all, solvers
from llmkick.compression.walk.weight import check_finite
from llmkick.models.allocator import keep_freed_memory
from llmkick.models.checkpoints.packed import Packed

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One pass over the blocks: for one recipe, or without propagation for several recipes and numbers of windows.

    allow_partial: go on where calibration text does not reach a large part of a block. progress: called with the number
    of finished blocks and of all blocks. processes: those that walk together. Each runs a part of the windows through
    its own copy of every block and solves some of its layers; all have all sums and all weights.
    """

    network: nn.Module
    source: BlockSource
    outputs: list[RecipeOutput]
    device: torch.device
    propagate: bool
    allow_partial: bool = False
    progress: Progress | None = None
    processes: Processes = ALONE
    _shared: list[Records] = field(default_factory=list)  # of weights that several blocks share, if there are any

    def run(self, calibration: Calibration | None) -> None:
        """Compress all blocks in order; the tally of each output says what was done."""
        if all(isinstance(output.recipe, Dense) for output in self.outputs):
            return
        if self.device.type == "cpu":
            keep_freed_memory()
        blocks = self.source.blocks
        with contextlib.ExitStack() as stack:
            for context in (torch.inference_mode(False), torch.no_grad(), experts_one_by_one(self.network)):
                stack.enter_context(context)
            for output in self.outputs:
                if output.finished is not None:
                    stack.enter_context(output.finished.writing())
            batches = calibration_batches(
                calibration,
                blocks,
                self.device,
                for_errors_only=not self._is_calibrated,
                counts={output.windows for output in self.outputs if output.windows is not None},
                part=(self.processes.rank, self.processes.count),
            )
            self._record_shared(batches)
            if self.propagate:
                self.source.show_finished()
            states = CalibrationPass(self.network, blocks, batches, propagate=self.propagate, processes=self.processes)
            for index in range(self._resume(states), len(blocks)):
                self._step(index, states)
        for output in self.outputs:
            output.tally.warnings += uneven_groups(output.recipe, blocks)

    @property
    def _is_calibrated(self) -> bool:
        return any(output.recipe.needs_calibration for output in self.outputs)

    @property
    def _statistics(self) -> dict[str, bool]:
        """Which statistics of inputs the recipes need."""
        return {
            "hessian": any(output.recipe.needs_hessian for output in self.outputs),
            "squares": any(output.recipe.needs_squares for output in self.outputs),
        }

    def _record_shared(self, batches: CalibrationBatches) -> None:
        """Record the inputs of shared weights, unless all of them are compressed already."""
        start = min(output.finished_count for output in self.outputs)
        if self._is_calibrated and shared_layers(self.source.blocks[start:]):
            records = record_shared(self.network, self.source, batches, self.processes, **self._statistics)
            self._shared.append(self._pooled(records))

    def _pooled(self, records: Records) -> Records:
        """The records of all processes, in each of them."""
        for record in records.values():
            record.pool(self.processes, self.device)
        return records

    def _record_of(self, layer: LinearLayer, records: Records, windows: int | None) -> InputRecord:
        """The inputs of a layer on the first windows; None: on all of them."""
        chosen = self._shared[0] if layer.twins and self._shared else records
        return chosen[max(chosen) if windows is None else windows]

    def _resume(self, states: CalibrationPass) -> int:
        """The first unfinished block, with its hidden states ready and the finished layers in place."""
        start = min(output.finished_count for output in self.outputs)
        if start == 0:
            return 0
        finished = self.outputs[0].finished
        kept = finished.load_hidden(start) if finished is not None and states.can_restore else None
        first, hidden = kept or (0, None)
        if hidden is not None:
            states.restore(hidden)
        for index in range(start):
            # Where the hidden states were loaded only the weights are needed, and only if they stay in memory.
            if index < first and self.outputs[0].blocks is None:
                continue
            with self.source.open(index) as block:
                if self.propagate:
                    put_layers(block, kept_weights(self.processes, finished, index, block))
                if index >= first:
                    states.advance(index)
        self._report_progress(start)
        return start

    def _step(self, index: int, states: CalibrationPass) -> None:
        """Calibrate, compress and keep block `index`."""
        started = time.perf_counter()
        outputs = [output for output in self.outputs if not output.has(index)]
        with self.source.open(index) as block:
            records = self._pooled(states.record(index, block, **self._statistics))
            if self._is_calibrated and not self.allow_partial:
                self._check_seen(block, records)
            self.source.release_memory()
            packed = self._compress_block(index, block, outputs, records)
            if self.propagate and index + 1 < len(self.source.blocks):
                states.advance(index)
            finish = self.source.finish(block)
        seconds = (time.perf_counter() - started) / len(self.outputs)
        for output, layers in zip(outputs, packed, strict=True):
            output.finish_block(index, self.source.blocks[index], layers, seconds, finish)
        self._keep_hidden(index + 1, states)
        self._report_progress(index + 1)

    def _check_seen(self, block: Block, records: Records) -> None:
        """Refuse a block of which some number of windows does not reach a large part."""
        for count in records:

            def is_seen(layer: LinearLayer, count: int = count) -> bool:
                return self._record_of(layer, records, count).statistics_of(layer) is not None

            check_seen(block, is_seen)

    def _compress_block(
        self, index: int, block: Block, outputs: list[RecipeOutput], records: Records
    ) -> list[dict[str, Future[Packed]]]:
        """Compress all layers by all recipes, and put them in place where they belong. The compact forms by output."""
        packed: list[dict[str, Future[Packed]]] = [{} for _ in outputs]
        replaced: list[tuple[LinearLayer, Tensor]] = []
        notes: dict[int, list[LayerNote | UnreadNote]] = {}
        for place, solved_layers in self._solved(block, outputs, records):
            layer, notes[place] = block.layers[place], [solved.note for solved in solved_layers]
            for output, layers, solved in zip(outputs, packed, solved_layers, strict=True):
                weight = output.keep(layer, solved, layers)
                if weight is None:
                    continue
                if self.propagate or self.source.drops_blocks:
                    replaced.append((layer, weight))
                elif output.blocks is not None:  # all at once too: the experts of a block share one parameter
                    replaced.append((output.blocks[index].layers[place], weight))
        # Layers are solved in another order than they are reported in where several are solved at once.
        read = read_notes([note for place in sorted(notes) for note in notes[place]])
        for output, own in zip(outputs, [read[number :: len(outputs)] for number in range(len(outputs))], strict=True):
            for note in own:
                output.add_note(note)
        replace_weights(replaced)
        names = [layer.name for layer in block.layers]
        return [{name: layers[name] for name in names if name in layers} for layers in packed]

    def _solved(
        self, block: Block, outputs: list[RecipeOutput], records: Records
    ) -> Iterator[tuple[int, list[SolvedLayer]]]:
        """Each place with its solved layers by output.

        Statistics are freed when no layer that this process solves needs them.
        """
        layers, count = block.layers, self.processes.count
        if count == 1:
            return self._solved_here(layers, range(len(layers)), outputs, records)
        record = records[max(records)]
        keys = [(bool(layer.twins), record.owner_of(layer)) for layer in layers]
        owners = solvers(keys, [_shape(layer) for layer in layers], count)
        own = [place for place, owner in enumerate(owners) if owner == self.processes.rank]
        for layer in layers:
            self._forget(layer, [layers[place] for place in own], records)
        return solved_by_all(layers, owners, self._solved_here(layers, own, outputs, records), self.processes)

    def _solved_here(
        self, layers: Sequence[LinearLayer], own: Sequence[int], outputs: list[RecipeOutput], records: Records
    ) -> Iterator[tuple[int, list[SolvedLayer]]]:
        """The solved layers of some places."""
        self._check_weights([layers[place] for place in own], outputs, records)
        to_come = {place: layers[place] for place in own}
        for places in solved_at_once(layers, own):
            # Layers that are solved at once are no twins, or all are.
            group = [to_come.pop(place) for place in places]
            by_output = [output.solve(group, self._record_of(group[0], records, output.windows)) for output in outputs]
            for layer in group:
                self._forget(layer, list(to_come.values()), records)
            yield from zip(places, map(list, zip(*by_output, strict=True)), strict=True)

    def _check_weights(self, layers: Sequence[LinearLayer], outputs: list[RecipeOutput], records: Records) -> None:
        """Raise NumericalError that names the first of the layers with NaN or Inf that is to be compressed."""
        compressed = [
            layer
            for layer in layers
            if any(output.compresses(layer, self._record_of(layer, records, output.windows)) for output in outputs)
        ]
        check_finite([layer.weight for layer in compressed], [layer.name for layer in compressed])

    def _forget(self, layer: LinearLayer, to_come: Sequence[LinearLayer], records: Records) -> None:
        for count in records:
            self._record_of(layer, records, count).forget(layer, to_come)

    def _keep_hidden(self, index: int, states: CalibrationPass) -> None:
        """Keep the hidden states that block `index` needs, for a walk that is stopped."""
        finished, hidden = self.outputs[0].finished, states.hidden_states
        if finished is not None and hidden and index < len(self.source.blocks):
            finished.keep_hidden(index, hidden)

    def _report_progress(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.source.blocks))


def _shape(layer: LinearLayer) -> tuple[int, int]:
    rows, width = layer.weight.shape
    return rows, width
