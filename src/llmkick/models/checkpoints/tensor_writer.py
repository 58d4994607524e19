"""Writing of safetensors files: each tensor goes to its place when it is there, so not all need be in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.files import naming
from llmkick.models.weights import bytes_of

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The types by their names in files.
DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class TensorWriter:
    """A safetensors file that is being written.

    tensors: all tensors that it will hold, of which only types and shapes are used (they may be on the meta device).
    One thread at a time may write. An OSError names the file.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        self.file = file
        self._places: dict[str, int] = {}
        self._expected = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        # Wide types first, so that every tensor starts at a multiple of its width.
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
            tensor = tensors[name]
            if tensor.dtype not in _NAMES:
                raise ModelError(f"{name} has type {tensor.dtype}, which safetensors files of ours do not hold")
            start, end = end, end + tensor.numel() * tensor.element_size()
            self._places[name] = start
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start, self.size = 8 + len(text), 8 + len(text) + end
        self._stream = file.open("wb", buffering=0)
        self._write(len(text).to_bytes(8, "little") + text, 0)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor; it is not kept. Raises ModelError for one of another type or shape, or a second time."""
        if name not in self._places or self._expected[name] != (tensor.dtype, tensor.shape):
            raise ModelError(
                f"{name} was to be written as {self._expected.get(name)}, not {tensor.dtype, tensor.shape}"
            )
        self._write(memoryview(bytes_of(tensor)), self._start + self._places.pop(name))

    def flush(self) -> None:
        """What was put until now survives a power failure afterwards."""
        with naming(self.file):
            os.fsync(self._stream.fileno())

    @property
    def is_complete(self) -> bool:
        """Whether all tensors were put."""
        return not self._places

    def _write(self, data: bytes | memoryview, place: int) -> None:
        left = memoryview(data)
        with naming(self.file):
            self._stream.seek(place)
            while len(left):
                left = left[self._stream.write(left) :]

    def close(self, *, durable: bool = False) -> None:
        """Finish the file; durable: it survives a power failure. Raises ModelError where it is not what was planned."""
        try:
            if durable:
                self.flush()
            with naming(self.file):
                size = os.fstat(self._stream.fileno()).st_size
        finally:
            self.abandon()
        if self._places or size != self.size:
            missing = f"{next(iter(self._places))} is missing" if self._places else f"it has {size} bytes"
            raise ModelError(f"{self.file.name} is not what was to be written: {missing}; run the command again")

    def abandon(self) -> None:
        """Close the file as it is."""
        self._stream.close()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically: a reader never sees a partial file, even after a power failure.

    An OSError names the file.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with naming(file):
            writer = TensorWriter(temporary, tensors, {"format": "pt", **(metadata or {})})
            try:
                for name, tensor in tensors.items():
                    writer.put(name, tensor)
                writer.close(durable=True)
            finally:
                writer.abandon()
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
