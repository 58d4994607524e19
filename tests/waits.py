"""Finds where code waits for a GPU, without one: tensors that stand for those of a GPU, and a note of each read."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

WAITING = ("__bool__", "__float__", "__int__", "__index__", "__array__", "item", "tolist", "numpy", "cpu", "nonzero")


class OnDevice(torch.Tensor):
    """A tensor that stands for one on a GPU, as does all that is computed with it."""


class Waits(TorchFunctionMode):
    """Notes where the engine reads a number of a tensor on the device: there it would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if arguments and isinstance(arguments[0], OnDevice) and getattr(function, "__name__", "") in WAITING:
            self.places += _caller()
        return function(*arguments, **(options or {}))


def _caller() -> list[str]:
    """The function that reads, unless it is one of transformers, which looks at the mask before a forward."""
    frame = sys._getframe(2)
    while "/torch/" in frame.f_code.co_filename:
        assert frame.f_back is not None
        frame = frame.f_back
    return [] if "/transformers/" in frame.f_code.co_filename else [frame.f_code.co_name]
