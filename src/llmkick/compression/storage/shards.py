"""Weight files of a Hugging Face folder, written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.tensor_writer import TensorWriter, naming, write_tensors

# Bytes of tensors in a file of the compact form, unless a single tensor is larger.
SHARD_BYTES = 250_000_000


class ShardWriter:
    """A Hugging Face checkpoint that is being written into a folder, each tensor when it is there, in any order.

    planned: all tensors, which may be on the meta device. The files are those that huggingface_hub would make of them.
    A context: an error closes the files as they are. One thread at a time may write.
    """

    def __init__(self, folder: Path, planned: Mapping[str, Tensor]) -> None:
        from huggingface_hub import split_torch_state_dict_into_shards

        split = split_torch_state_dict_into_shards(dict(planned))
        self._folder, self._planned = folder, planned
        self._names_of = {file: list(names) for file, names in split.filename_to_tensors.items()}
        self._file_of = {name: file for file, names in self._names_of.items() for name in names}
        self._open: dict[str, TensorWriter] = {}
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

    def close(self) -> None:
        """Finish all files. Raises ModelError, naming a tensor that is missing."""
        for file, names in self._names_of.items():
            if file not in self._open:
                raise ModelError(f"{names[0]}, which was to be in {file}, is missing; run the command again")
            self._open[file].close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._open.values():
            writer.abandon()


def write_shards(folder: Path, shards: Iterable[Mapping[str, Tensor]]) -> None:
    """Write a Hugging Face checkpoint, one file for each shard, whose tensors need not be known before."""
    shard_of: dict[str, int] = {}
    total = 0
    for number, shard in enumerate((shard for shard in shards if shard), start=1):
        twice = sorted(shard_of.keys() & shard.keys())
        assert not twice, f"two shards hold {twice}"
        write_tensors(folder / f"{number}.safetensors", shard)
        shard_of |= dict.fromkeys(shard, number)
        total += sum(map(size_of, shard.values()))
    count = max(shard_of.values())
    names = {
        n: f"model-{n:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        for n in range(1, count + 1)
    }
    for number, name in names.items():
        (folder / f"{number}.safetensors").rename(folder / name)
    if count > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[n] for name, n in shard_of.items()}}
        write_json(folder / "model.safetensors.index.json", index)


def bundles(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Group (name, tensor) pairs into dictionaries of at most SHARD_BYTES; a larger tensor gets its own."""
    bundle: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if bundle and sum(map(size_of, bundle.values())) + size_of(tensor) > SHARD_BYTES:
            yield bundle
            bundle = {}
        bundle[name] = tensor
    if bundle:
        yield bundle


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON. An OSError names the file."""
    with naming(file):
        file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
