"""One reader for the weights of every folder: quantized ones that can be dequantized are read as plain weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkick.models.checkpoints.dequantization import StoredAs, affine_weights, fp8_weights, mxfp4_weights
from llmkick.models.checkpoints.quantized import DEQUANTIZED, method_of, quantization_of
from llmkick.models.checkpoints.weight_files import TensorFiles

# Scales of activations and of cached keys and values, on which weights do not depend, and orders of columns that
# `packed_weights` has checked.
BESIDE_WEIGHTS = re.compile(
    r"(^|\.)((input|output|activation)_(scale|zero_point|global_scale|scale_ub)|qscale_act|weight_g_idx"
    r"|(self_)?att(n|ention)\.[qkv]_(scale|zero_point))$"
)


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors of a folder, with quantized weights as plain ones where their method is in `DEQUANTIZED`.

    Raises ModelError for files that are missing or damaged, and naming a tensor that cannot be dequantized.
    """
    stated = quantization_of(folder)
    method = method_of(stated)
    files = TensorFiles(folder)
    return PlainTensors(files, method, stated) if method in DEQUANTIZED else files


class PlainTensors(TensorFiles):
    """Tensors of which some are stored quantized, and computed when they are read; `headers` are those of the files."""

    def __init__(self, files: TensorFiles, method: str, stated: Mapping[str, Any]) -> None:
        self.folder, self.files, self.headers = files.folder, files.files, files.headers
        self._alike: dict[frozenset[str], bool] = {}
        self.weights: dict[str, StoredAs] = dict(_weights_of(method, stated, files))
        used = {part for weight in self.weights.values() for part in weight.parts.values()}
        self._plain = {name for name in files.headers if name not in used and not BESIDE_WEIGHTS.search(name)}

    @property
    def names(self) -> set[str]:
        """The names of all weights, and of the other tensors."""
        return self._plain | self.weights.keys()

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU; a quantized weight is computed in the precision of its method, mostly float32."""
        weight = self.weights.get(name)
        if weight is None:
            return super().read(name)
        return weight.decode({role: super(PlainTensors, self).read(part) for role, part in weight.parts.items()})

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, for a quantized weight that of the plain one."""
        weight = self.weights.get(name)
        return super().shape(name) if weight is None else weight.shape

    def dtype(self, name: str) -> torch.dtype | None:
        """A tensor's type; None of a quantized weight, which is computed."""
        return None if name in self.weights else super().dtype(name)

    def size_of(self, name: str) -> int:
        """The bytes that a tensor takes in its file, for a quantized weight with its scales."""
        weight = self.weights.get(name)
        return super().size_of(name) if weight is None else sum(map(super().size_of, weight.parts.values()))

    def is_float(self, name: str) -> bool:
        """Whether a tensor can be used as floating-point values as it is read."""
        return name in self.weights or super().is_float(name)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor; of a quantized weight, the first of its parts."""
        weight = self.weights.get(name)
        return super().file_of(name if weight is None else next(iter(weight.parts.values())))

    @contextlib.contextmanager
    def slices(self) -> Iterator[Mapping[str, Any]]:
        """All tensors, read where they are indexed; the files stay open meanwhile."""
        with super().slices() as stored:
            plain = {name: stored[name] for name in self._plain}
            yield {**plain, **{name: _Lazy(weight, stored) for name, weight in self.weights.items()}}


class _Lazy(NamedTuple):
    """A quantized weight that is computed where it is indexed, as `tensor[...]`."""

    weight: StoredAs
    stored: Mapping[str, Any]

    def __getitem__(self, index: Any) -> Tensor:  # type: ignore[override]
        weight = self.weight.decode({role: self.stored[part][...] for role, part in self.weight.parts.items()})
        return weight[index]


def _weights_of(method: str, stated: Mapping[str, Any], files: TensorFiles) -> Iterator[tuple[str, StoredAs]]:
    if method == "mxfp4":
        return mxfp4_weights(files)
    if method == "metal":
        return affine_weights(stated, files)
    if method == "compressed-tensors":
        from llmkick.models.checkpoints.compressed_tensors import packed_weights  # only where the package is installed

        return packed_weights(stated, files)
    return fp8_weights(method, stated, files)
