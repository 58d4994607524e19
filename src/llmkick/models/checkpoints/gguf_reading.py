"""Reading a GGUF file once for everything that is made of it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """While it lasts, the gguf package opens each file and makes each table of tensor names once in this process.

    It takes seconds to read a vocabulary, and transformers, which looks both up in the package for each use, opens a
    file three times and makes the table anew for every module of a network.
    """
    import gguf
    from gguf.gguf_reader import GGUFReader  # that of the package may be replaced already

    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}

    class PlainReader(GGUFReader):
        """Slices the mapped file as a plain array, which costs a fraction: vocabularies have 100,000 strings."""

        def _get(self, *arguments: Any, **options: Any) -> Any:
            self.data: Any = self.data.view(np.ndarray)
            return super()._get(*arguments, **options)

    @functools.cache
    def opened(path: str, mode: Any) -> Any:
        return PlainReader(path, mode)

    def reader(path: Any, mode: str = "r") -> Any:
        return opened(os.path.realpath(path), mode)  # a link to a file is that file

    replaced = {"GGUFReader": reader, "get_tensor_name_map": functools.cache(before["get_tensor_name_map"])}
    try:
        for name, value in replaced.items():
            setattr(gguf, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(gguf, name, value)
