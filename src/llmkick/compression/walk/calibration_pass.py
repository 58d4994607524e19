"""The calibration on its way through the blocks: what blocks hand on, forwards of one block, recorded layer inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from llmkick.compression.walk.batches import CalibrationBatches
from llmkick.compression.walk.block_forward import BlockOutput, BlockRunner
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.input_hooks import InputHooks
from llmkick.compression.walk.inputs import ForwardInputs, InputRecord
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.parallel import parallel_map
from llmkick.compression.walk.processes import ALONE, Processes

# Number of windows → the record of their inputs.
Records = Mapping[int, InputRecord]


class CalibrationPass:
    """Runs the calibration batches through one block after another.

    It holds what the blocks before the next one have handed on for each batch, None before the first block. With
    `propagate` a block is run twice, as in all originals: its dense layers are recorded, and after compression the
    block passes on its new outputs. Without, the first forward does both.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: list[Block],
        calibration: CalibrationBatches,
        *,
        propagate: bool,
        processes: Processes = ALONE,
    ) -> None:
        self._batches, self._workers, self._counts = calibration.batches, calibration.workers, calibration.counts
        self._outputs: list[BlockOutput | None] = [None] * len(self._batches)
        # Without calibration no block runs.
        self._runner = BlockRunner(network, blocks) if self._batches else None
        self._propagate = propagate
        self._processes = processes
        # The layer names of the last recorded block, and the name of the layer that ran last in it.
        self._last: tuple[tuple[str, ...], str] | None = None
        self._copies_inputs = False  # set when the network changes a layer's input in place

    @property
    def hidden_states(self) -> list[Tensor]:
        """The hidden states of each batch where they are all that is needed to go on later, otherwise nothing.

        They are when nothing else is handed on, and when they can be cut into other batches, as (sequences, tokens,
        width). Batches of several numbers of windows overlap, so they are not.
        """
        if not self.can_restore:
            return []
        outputs = [output for output in self._outputs if output is not None and output.is_plain]
        states = [output.states for output in outputs]
        sizes = [len(batch) for batch in self._batches]
        return states if [len(s) for s in states if s.dim() == 3] == sizes else []

    @property
    def can_restore(self) -> bool:
        """Whether hidden states from disk can be used: those of one number of windows, which one process runs."""
        return len(self._counts) == 1 and self._processes.count == 1

    def restore(self, states: Sequence[Tensor]) -> None:
        """Go on with hidden states from disk, which may have been cut into other batches."""
        sizes = [len(batch) for batch in self._batches]
        pieces = torch.split(torch.cat(list(states)), sizes)
        self._outputs = [BlockOutput(states=piece.to(self._batches[0].device)) for piece in pieces]

    def record(self, index: int, block: Block, *, hessian: bool, squares: bool) -> Records:
        """Run the calibration through block `index` and record the inputs of its layers, for each number of windows."""
        records = {
            count: InputRecord(block.layers, hessian=hessian, squares=squares, batches=self._all(places))
            for count, places in self._counts.items()
        }
        names = tuple(layer.name.removeprefix(block.name) for layer in block.layers)
        # Blocks of one kind run their layers in the same order, so with propagation, where the output is not needed,
        # the forward can end at the layer that ran last before. Experts run in the order of their tokens.
        last = None
        if self._propagate and self._last is not None and self._last[0] == names:
            last = f"{block.name}{self._last[1]}"
        self.observe(index, {layer: layer for layer in block.layers}, records, last=last)
        record = records[max(records)]
        if record.order and not any(layer.is_of_expert for layer in block.layers):
            self._last = names, record.order[-1].removeprefix(block.name)
        return records

    def _all(self, places: Sequence[int]) -> int:
        """About how many batches all processes run where this one runs those in these places."""
        return self._processes.count * len(places)

    def observe(
        self, index: int, layers: Mapping[LinearLayer, LinearLayer], records: Records, *, last: str | None = None
    ) -> None:
        """Run the calibration through block `index` and add the inputs of its layers to the records.

        layers: which layers to observe → the layer in whose name they are recorded. last: where a forward may end.
        """
        with InputHooks(tuple(layers), last=last) as hooks, self._only(index) as run:

            def forward(number: int) -> tuple[BlockOutput | None, ForwardInputs]:
                inputs = ForwardInputs(copies=self._copies_inputs)
                with torch.no_grad(), hooks.calling(lambda layer, given: inputs.add(layers[layer], given)):
                    return run(number), inputs

            numbers = range(len(self._batches))
            for number, (output, inputs) in enumerate(parallel_map(forward, numbers, workers=self._workers)):
                if inputs.changed:
                    self._copies_inputs = True
                    output, inputs = forward(number)
                for count, record in records.items():
                    if number in self._counts[count]:
                        record.add(inputs)
                if not self._propagate:
                    self._outputs[number] = output
        InputRecord.check_finite(records.values())

    def advance(self, index: int) -> None:
        """Run block `index`, with the weights that it has now, and keep its outputs for the next block."""
        with self._only(index) as run:

            def forward(number: int) -> BlockOutput | None:
                with torch.no_grad():
                    return run(number)

            numbers = range(len(self._batches))
            for number, output in enumerate(parallel_map(forward, numbers, workers=self._workers)):
                self._outputs[number] = output

    @contextlib.contextmanager
    def _only(self, index: int) -> Iterator[Callable[[int], BlockOutput | None]]:
        """A function that runs a batch, by its number, through block `index`."""
        if self._runner is None:
            yield lambda number: None
            return
        with self._runner.only(index) as run:
            yield lambda number: run(self._batches[number], self._outputs[number])
