"""Weights that layers of several blocks share: the statistics of the inputs of all of them.

Such a weight is compressed once, in the first block that has it. By then the later blocks have not run on the outputs
of compressed blocks, so the inputs of all its layers are recorded in a forward of the dense model beforehand.
"""

from __future__ import annotations

import torch
from torch import nn

from llmkick.compression.walk.batches import CalibrationBatches
from llmkick.compression.walk.block_sources import BlockSource
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration_pass import CalibrationPass, Records
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.processes import Processes


def shared_layers(blocks: list[Block]) -> list[LinearLayer]:
    """The layers whose weight has twins in later blocks."""
    return [layer for block in blocks for layer in block.layers if layer.twins]


def record_shared(
    network: nn.Module,
    source: BlockSource,
    batches: CalibrationBatches,
    processes: Processes,
    *,
    hessian: bool,
    squares: bool,
) -> Records:
    """The inputs of all layers that share a weight with a later block, in a forward of the dense model.

    They are recorded in the name of the first of them, for each number of windows; here on those of this process.
    """
    blocks = source.blocks
    shared = shared_layers(blocks)
    users = {user: layer for layer in shared for user in (layer, *layer.twins)}
    uses = processes.count * max(1 + len(layer.twins) for layer in shared)
    # Adapters of a shared layer run beside it in one of the blocks only.
    records = {
        count: InputRecord(shared, hessian=hessian, squares=squares, batches=uses * len(places), shares_inputs=False)
        for count, places in batches.counts.items()
    }
    states = CalibrationPass(network, blocks, batches, propagate=False)
    here = [{user: layer for user, layer in users.items() if user.name.startswith(f"{b.name}.")} for b in blocks]
    last = max(index for index, layers in enumerate(here) if layers)
    with torch.no_grad():
        for index in range(last + 1):
            with source.open(index):
                states.observe(index, here[index], records)
            source.release_memory()
    return records
