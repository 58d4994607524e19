"""Counting the forwards of a walk over the blocks."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from llmkick.compression.walk import walk


def count_forwards(patch: pytest.MonkeyPatch, counted: list[int]) -> None:
    """Append the number of the block to `counted` whenever a batch runs through it."""
    original = walk.BlockRunner.only

    @contextlib.contextmanager
    def only(self: walk.BlockRunner, index: int) -> Iterator[Any]:
        with original(self, index) as run:
            yield lambda *batch: (counted.append(index), run(*batch))[1]

    patch.setattr(walk.BlockRunner, "only", only)
