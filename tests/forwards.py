"""Counting the forwards of a walk over the blocks."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from llmkick.compression.walk.block_forward import BlockRunner


def count_forwards(patch: pytest.MonkeyPatch, counted: list[int]) -> None:
    """Append the number of the block to `counted` whenever a batch runs through it."""
    original = BlockRunner.only

    @contextlib.contextmanager
    def only(self: BlockRunner, index: int) -> Iterator[Any]:
        with original(self, index) as run:
            yield lambda *batch: (counted.append(index), run(*batch))[1]

    patch.setattr(BlockRunner, "only", only)
