"""What is to be said about a compressed layer; its numbers are read from a device for many layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.report import LayerErrors, LayerReport
from llmkick.compression.walk.size import compact_bytes
from llmkick.compression.walk.weight import not_held, relative_error


@dataclass(frozen=True, kw_only=True)
class LayerNote:
    """What is to be said about a compressed layer; the last three of a recovered one. Sizes in bytes."""

    report: LayerReport
    warnings: tuple[str, ...]
    dense_bytes: int
    stored_bytes: int
    recovered: LayerErrors | None = None
    recovery_seconds: float = 0.0
    adapter_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class UnreadNote:
    """The same, with the numbers still on the layer's device: a GPU has to be waited for before they can be read.

    recipe: the one that was applied. finite: whether the weight holds no NaN and no Inf, () bool; None where it is the
    dense one. nonzero: how many weights are stored that are not 0, () int64. squares: see `output_squares`, None where
    no input is known.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    recipe: Recipe
    damping: float | None
    tokens: int
    warnings: tuple[str, ...]
    finite: Tensor | None
    nonzero: Tensor
    squares: Tensor | None
    recovered: LayerErrors | None = None
    recovery_seconds: float = 0.0
    adapter_bytes: int = 0

    @property
    def numbers(self) -> list[Tensor]:
        """All numbers that are to be read, each tensor as one dimension."""
        return [tensor.reshape(-1) for tensor in (self.finite, self.nonzero, self.squares) if tensor is not None]

    def read(self, numbers: Iterator[float]) -> LayerNote:
        """The note with the values of its numbers. Raises NumericalError for a weight that is not finite."""
        if self.finite is not None and not next(numbers):
            raise not_held(self.name, self.recipe, self.dtype)
        rows, columns = self.shape
        sparsity = 1 - int(next(numbers)) / (rows * columns)
        pairs = [] if self.squares is None else [(next(numbers), next(numbers)) for _ in range(len(self.squares))]
        report = LayerReport(
            name=self.name,
            shape=self.shape,
            realised_sparsity=sparsity,
            relative_output_error=relative_error(pairs),
            damping=self.damping,
            tokens=self.tokens,
        )
        stored = compact_bytes(self.shape, self.dtype.itemsize, self.recipe, sparsity)
        return LayerNote(
            report=report,
            warnings=self.warnings,
            dense_bytes=rows * columns * self.dtype.itemsize,
            stored_bytes=stored + self.adapter_bytes,
            recovered=self.recovered,
            recovery_seconds=self.recovery_seconds,
            adapter_bytes=self.adapter_bytes,
        )


def read_notes(notes: Sequence[LayerNote | UnreadNote]) -> list[LayerNote]:
    """The notes in the same order, with the numbers of all: each device is waited for once.

    Raises NumericalError that names the first layer whose weight is not finite.
    """
    unread: dict[torch.device, list[Tensor]] = {}
    for note in notes:
        if isinstance(note, UnreadNote):
            unread.setdefault(note.nonzero.device, []).extend(note.numbers)
    # Flags and counts become float64 beside the squares, which holds them exactly.
    numbers = {device: iter(torch.cat(tensors).tolist()) for device, tensors in unread.items()}
    return [note.read(numbers[note.nonzero.device]) if isinstance(note, UnreadNote) else note for note in notes]
