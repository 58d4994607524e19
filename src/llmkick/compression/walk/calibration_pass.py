"""The calibration on its way through the blocks: hidden states, forwards of one block, recorded layer inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmkick.compression.walk.batches import CalibrationBatches
from llmkick.compression.walk.block_forward import BlockRunner, InputHooks
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.inputs import ForwardInputs, InputRecord
from llmkick.compression.walk.parallel import parallel_map


class CalibrationPass:
    """Runs the calibration batches through one block after another.

    It holds the hidden states of each batch at the input of the next block: (sequences, tokens, width), None for the
    output of the embeddings. With `propagate` a block is run twice, as in all originals: its dense layers are
    recorded, and after compression the block passes on its new outputs. Without, the first forward does both.
    """

    def __init__(
        self, network: nn.Module, blocks: list[Block], calibration: CalibrationBatches, *, propagate: bool
    ) -> None:
        self._batches, self._workers = calibration.batches, calibration.workers
        self._hidden: list[Tensor | None] = [None] * len(self._batches)
        self._runner = BlockRunner(network, blocks)
        self._propagate = propagate
        # The layer names of the last recorded block, and the name of the layer that ran last in it.
        self._last: tuple[tuple[str, ...], str] | None = None
        self._copies_inputs = False  # set when the network changes a layer's input in place

    @property
    def hidden_states(self) -> list[Tensor]:
        """The hidden states of each batch, empty before the first block has run."""
        return [states for states in self._hidden if states is not None]

    def restore(self, states: Sequence[Tensor]) -> None:
        """Go on with hidden states from disk, which may have been cut into other batches."""
        sizes = [len(batch) for batch in self._batches]
        pieces = torch.split(torch.cat(list(states)), sizes)
        self._hidden = [piece.to(self._batches[0].device) for piece in pieces]

    def record(self, index: int, block: Block, *, hessian: bool, squares: bool) -> InputRecord:
        """Run the calibration through block `index` and record the inputs of its layers."""
        record = InputRecord(block, hessian=hessian, squares=squares, batches=len(self._batches))
        names = tuple(layer.name.removeprefix(block.name) for layer in block.layers)
        # Blocks of one kind run their layers in the same order, so with propagation, where the output is not needed,
        # the forward can end at the layer that ran last before. Experts run in the order of their tokens.
        last = None
        if self._propagate and self._last is not None and self._last[0] == names:
            last = f"{block.name}{self._last[1]}"
        with InputHooks(block.layers, last=last) as hooks, self._runner.only(index) as run:

            def forward(number: int) -> tuple[Tensor | None, ForwardInputs]:
                inputs = ForwardInputs(copies=self._copies_inputs)
                with torch.no_grad(), hooks.calling(inputs.add):
                    return run(self._batches[number], self._hidden[number]), inputs

            numbers = range(len(self._batches))
            for number, (output, inputs) in enumerate(parallel_map(forward, numbers, workers=self._workers)):
                if inputs.changed:
                    self._copies_inputs = True
                    output, inputs = forward(number)
                record.add(inputs)
                if not self._propagate:
                    self._hidden[number] = output
        if record.order and not any(layer.form == "expert" for layer in block.layers):
            self._last = names, record.order[-1].removeprefix(block.name)
        return record

    def advance(self, index: int) -> None:
        """Run block `index`, with the weights that it has now, and keep its outputs for the next block."""
        with self._runner.only(index) as run:

            def forward(number: int) -> Tensor | None:
                with torch.no_grad():
                    return run(self._batches[number], self._hidden[number])

            numbers = range(len(self._batches))
            for number, output in enumerate(parallel_map(forward, numbers, workers=self._workers)):
                self._hidden[number] = output
