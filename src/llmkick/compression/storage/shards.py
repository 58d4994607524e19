"""Weight files of a Hugging Face folder, written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from llmkick.errors import ModelError
from llmkick.files import naming
from llmkick.models.checkpoints.tensor_writer import TensorWriter

# Bytes of tensors in a file of the compact form, unless a single tensor is larger.
SHARD_BYTES = 250_000_000
# Bytes after which a file is flushed while it is written, beside the arithmetic: at the end nothing waits for the disk.
FLUSH_BYTES = 500_000_000


class ShardWriter:
    """A Hugging Face checkpoint that is being written into a folder, each tensor when it is there, in any order.

    planned: all tensors, which may be on the meta device. The files are those that huggingface_hub would make of them;
    each survives a power failure as soon as its last tensor is there. A context: an error closes the files as they are.
    One thread at a time may write.
    """

    def __init__(self, folder: Path, planned: Mapping[str, Tensor]) -> None:
        from huggingface_hub import split_torch_state_dict_into_shards

        split = split_torch_state_dict_into_shards(dict(planned))
        self._folder, self._planned = folder, planned
        self._names_of = {file: list(names) for file, names in split.filename_to_tensors.items()}
        self._file_of = {name: file for file, names in self._names_of.items() for name in names}
        self._open: dict[str, TensorWriter] = {}
        self._unflushed: dict[str, int] = {}
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            write_json(folder / "model.safetensors.index.json", index)

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors by name. Raises ModelError, naming the tensor, for one that was not planned like this."""
        for name, tensor in tensors:
            file = self._file_of.get(name)
            if file is None:
                raise ModelError(f"{name} was not to be written: transformers reads other names than it seemed")
            if file not in self._open:
                planned = {name: self._planned[name] for name in self._names_of[file]}
                self._open[file] = TensorWriter(self._folder / file, planned, {"format": "pt"})
            self._open[file].put(name, tensor)
            self._unflushed[file] = self._unflushed.get(file, 0) + size_of(tensor)
            if self._open[file].is_complete:
                self._open[file].close(durable=True)
            elif self._unflushed[file] > FLUSH_BYTES:
                self._open[file].flush()
                self._unflushed[file] = 0

    def close(self) -> None:
        """Finish all files. Raises ModelError, naming a tensor that is missing."""
        for file, names in self._names_of.items():
            if file not in self._open:
                raise ModelError(f"{names[0]}, which was to be in {file}, is missing; run the command again")
            if not self._open[file].is_complete:
                self._open[file].close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._open.values():
            writer.abandon()


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON. An OSError names the file."""
    with naming(file):
        file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
