"""The calibration windows of a walk, cut into batches that fit the memory and keep the processor busy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.models.memory import free_bytes

# Calibration tokens that run through a block at a time, and values of its widest layer's input among them. A CPU is
# busy with 2,048 tokens already, and more of them leave its cache. An NVIDIA GPU is given 16 windows of 2,048, or half
# as many until they take no more than a quarter of its free memory.
BATCH_TOKENS = 8192
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_CUDA = 32768
BATCH_VALUES = 2**24
MEMORY_SHARE = 0.25
EXPERTS_OF_A_TOKEN = 8  # so many at most in nearly all mixtures of experts
# Sequences that run only to measure the output error of a method that needs no calibration.
ERROR_SEQUENCES = 2


@dataclass(frozen=True, kw_only=True)
class CalibrationBatches:
    """Token ids on the device, (sequences, tokens) each, and how many batches run in parallel.

    counts: number of windows → the batches, by place, of which it consists. Several numbers share the batches that they
    would have alone, so that their statistics are sums of the same terms in the same order.
    """

    batches: Sequence[Tensor]
    workers: int
    counts: Mapping[int, Sequence[int]]


def calibration_batches(
    calibration: Calibration | None,
    blocks: Sequence[Block],
    device: torch.device,
    *,
    for_errors_only: bool,
    counts: Collection[int] = (),
    part: tuple[int, int] = (0, 1),
) -> CalibrationBatches:
    """Cut the windows into batches whose sizes differ by one sequence at most; without calibration there are none.

    for_errors_only: no recipe needs the calibration, so a few sequences are enough to measure the output error.
    counts: numbers of windows, from the first on, that are calibrated each on its own; by default all of them.
    part: (which, of how many) equal parts of the windows is cut, each of consecutive windows; with `counts` all.
    """
    if calibration is None:
        return CalibrationBatches(batches=[], workers=1, counts={0: []})
    tokens = torch.from_numpy(calibration.tokens)
    if for_errors_only:
        tokens = tokens[:ERROR_SEQUENCES]
    assert part[1] == 1 or not counts, "several numbers of windows in several processes"
    tokens = torch.tensor_split(tokens, part[1])[part[0]]
    if not len(tokens):
        return CalibrationBatches(batches=[], workers=1, counts={0: []})
    widest = max(layer.weight.shape[1] for block in blocks for layer in block.layers)
    limit = tokens_that_fit(blocks, free_bytes(device)) if device.type == "cuda" else BATCH_VALUES // widest
    spans = {count: _spans(count, tokens.shape[1], widest, device, limit=limit) for count in (counts or [len(tokens)])}
    places = sorted({span for of_count, _ in spans.values() for span in of_count})
    return CalibrationBatches(
        batches=[tokens[start:stop].to(device) for start, stop in places],
        workers=max(workers for _, workers in spans.values()),
        counts={count: [places.index(span) for span in of_count] for count, (of_count, _) in spans.items()},
    )


def _spans(
    count: int, length: int, widest: int, device: torch.device, *, limit: int
) -> tuple[list[tuple[int, int]], int]:
    """The first and last sequence of each batch of `count` windows, and how many batches run in parallel.

    limit: tokens that all batches which run in parallel have at most.
    """
    batch_tokens, workers = limit if device.type == "cuda" else BATCH_TOKENS, 1
    if device.type == "cpu":
        batch_tokens = min(BATCH_TOKENS, BATCH_TOKENS_CPU)
        workers = max(1, min(torch.get_num_threads(), count, BATCH_VALUES // (widest * length)))
    budget = min(batch_tokens, limit // workers)
    rounds = -(-count // (workers * max(1, budget // length)))
    pieces = torch.tensor_split(torch.arange(count), min(count, rounds * workers))
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces], workers


def tokens_that_fit(blocks: Sequence[Block], free: int | None) -> int:
    """Tokens that a GPU runs through a block at a time: BATCH_TOKENS_CUDA, or a half, a quarter … that fits."""
    tokens, bytes_a_token = BATCH_TOKENS_CUDA, max(map(_bytes_a_token, blocks))
    while free is not None and tokens > 1 and tokens * bytes_a_token > MEMORY_SHARE * free:
        tokens //= 2
    return tokens


def _bytes_a_token(block: Block) -> int:
    """Bytes of all inputs and outputs of the layers for one token, which are alive together while they are recorded."""
    plain = sum(
        sum(layer.weight.shape) * layer.weight.element_size() for layer in block.layers if not layer.is_of_expert
    )
    experts = [sum(layer.weight.shape) * layer.weight.element_size() for layer in block.layers if layer.is_of_expert]
    return plain + EXPERTS_OF_A_TOKEN * max(experts, default=0)
