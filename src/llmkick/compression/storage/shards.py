"""Weight files of a Hugging Face folder, written one at a time and read back before they count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.weights import digest_of

# Bytes of tensors in a file, unless a single tensor is larger.
SHARD_BYTES = 250_000_000


def write_shards(folder: Path, shards: Iterable[Mapping[str, Tensor]]) -> None:
    """Write a Hugging Face checkpoint, one file for each shard; only one shard is in memory at a time.

    Afterwards every tensor is read back. Raises ModelError, naming the tensor, when it is not what was to be written.
    """
    from safetensors.torch import save_file

    digests: dict[str, str] = {}
    shard_of: dict[str, int] = {}
    total = 0
    for number, shard in enumerate((shard for shard in shards if shard), start=1):
        tensors = _apart({name: tensor.cpu().contiguous() for name, tensor in shard.items()})
        twice = sorted(shard_of.keys() & tensors.keys())
        assert not twice, f"two shards hold {twice}"
        digests |= {name: digest_of(tensor) for name, tensor in tensors.items()}
        save_file(tensors, folder / f"{number}.safetensors", metadata={"format": "pt"})
        shard_of |= dict.fromkeys(tensors, number)
        total += sum(map(size_of, tensors.values()))
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
    for number, file in names.items():
        check_file(folder / file, {name: digests[name] for name, n in shard_of.items() if n == number})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that share their memory with one before as copies: a file holds each of them."""
    places: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    return apart


def check_file(file: Path, digests: Mapping[str, str]) -> None:
    """Compare the tensors of a file with the digests of those that were to be written, one at a time.

    Raises ModelError, naming the first tensor that is missing, unexpected or different in type, shape or values.
    """
    from safetensors import SafetensorError, safe_open

    name = "its header"
    try:
        with safe_open(file, framework="pt") as stream:
            odd = sorted(set(stream.keys()) ^ set(digests))
            if odd:
                name = odd[0]
                raise ModelError(_damaged(file, name, "missing" if name in digests else "not expected"))
            for name in sorted(digests):
                if digest_of(stream.get_tensor(name)) != digests[name]:
                    raise ModelError(_damaged(file, name, "not what was written"))
    except (SafetensorError, OSError) as error:
        raise ModelError(_damaged(file, name, f"unreadable ({error})")) from error


def _damaged(file: Path, name: str, reason: str) -> str:
    return (
        f"{file.name}, read back after writing: {name} is {reason}. Nothing was kept; check the disk and its file "
        "system, and run the command again"
    )


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
    """Write values as indented JSON."""
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
