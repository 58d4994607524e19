"""The weight files of a folder: which of its files count, and the tensors in them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed_folder import MANIFEST, packed_files
from llmkick.models.checkpoints.tensor_writer import DTYPES
from llmkick.models.checkpoints.unread_weights import INDEX, PICKLES, SINGLE, only_pickles, uncounted

# What a clone without Git LFS holds in place of a large file.
LFS_POINTER = b"version https://git-lfs"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
# Bytes of a value of the types with more than one.
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder, the same ones that transformers reads, in name order.

    They are those of the manifest of a packed folder; the file that `transformers_weights` in config.json names; a
    single model.safetensors; or the files of the index. Raises ModelError when some are missing, when a single file
    and an index stand for different weights, or when an adapter lies beside them.
    """
    files = _weight_files(folder)
    adapter = next((name for name in ADAPTERS if _is_there(folder / name)), None)
    if adapter is not None:
        raise ModelError(
            f"{folder} holds a whole model ({files[0].name}{', …' if len(files) > 1 else ''}) and an adapter "
            f"({adapter}): merge the adapter into the model, or move one of them away"
        )
    return files


def _weight_files(folder: Path) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return _checked(folder, packed_files(folder), MANIFEST)
    chosen = _named_by_config(folder)
    if chosen is not None:
        names = [chosen] if not chosen.endswith(".index.json") else indexed(folder / chosen)
        return _checked(folder, names, "config.json")
    single, index = _is_there(folder / SINGLE), _is_there(folder / INDEX)
    if single and index:
        return _one_of_two(folder)
    if single:
        return _checked(folder, [SINGLE], "")
    if index:
        return _checked(folder, indexed(folder / INDEX), INDEX)
    raise _no_weights(folder)


def _named_by_config(folder: Path) -> str | None:
    """The file that config.json names as the weights; None where it names none, as nearly always."""
    named = config_json(folder).get("transformers_weights")
    if named is None:
        return None
    endings = (".safetensors", ".safetensors.index.json")
    if not isinstance(named, str) or Path(named).name != named or not named.endswith(endings):
        raise ModelError(
            f'{folder / "config.json"}: "transformers_weights" is {named!r}; it has to name a .safetensors file in the '
            "folder, or an index of such files"
        )
    return named


def config_json(folder: Path) -> dict[str, Any]:
    """The entries of a folder's config.json; none for a damaged file, which loading refuses with its own error."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _one_of_two(folder: Path) -> list[Path]:
    """The single file beside an index, unless the files of the index are there and hold something else.

    transformers reads the single file. An older copy of the weights beside newer ones looks just the same, so two
    different sets of weights are refused.
    """
    names = indexed(folder / INDEX)
    shards = [folder / name for name in names if name != SINGLE]
    single = _checked(folder, [SINGLE], "")
    if not any(map(_is_there, shards)):
        return single
    alone, several = TensorFiles(folder, single), TensorFiles(folder, _checked(folder, names, INDEX))
    odd = _first_difference(alone, several)
    if odd is None:
        return single
    raise ModelError(
        f"{folder} holds two sets of weights, {SINGLE} and the files of {INDEX} ({shards[0].name}, …), which differ "
        f"in {odd}: delete the outdated set, {SINGLE} or {INDEX} with its files"
    )


def _first_difference(one: TensorFiles, other: TensorFiles) -> str | None:
    odd = sorted(one.names ^ other.names)
    if odd:
        return odd[0]
    return next((name for name in sorted(one.names) if not _same(one.read(name), other.read(name))), None)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def indexed(index: Path) -> list[str]:
    """The names of the files that an index lists, in order. Raises ModelError when it cannot be read."""
    refuse_unreadable(index)
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        if names and all(isinstance(name, str) and Path(name).name == name for name in names):
            return names
        reason = "its weight_map names no files of this folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
    raise ModelError(f"{index} cannot be read ({reason}): fetch it again")


def _checked(folder: Path, names: list[str], listed_in: str) -> list[Path]:
    """The paths of these files. Raises ModelError naming those that are not there, or are no weights."""
    missing = [name for name in names if not _is_there(folder / name)]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the {len(names)} files with its weights, which {listed_in} lists: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}; fetch them, or the whole model, again"
        )
    paths = [folder / name for name in names]
    for path in paths:
        refuse_unreadable(path)
    return paths


def refuse_unreadable(path: Path) -> None:
    """Raise ModelError for a link whose target is gone, or a Git LFS pointer in place of a file."""
    if path.is_symlink() and not path.exists():
        raise ModelError(
            f"{path} is a link to {path.readlink()}, which is not there (in the cache of the hub: a download that was "
            "interrupted or cleaned up); fetch the model again"
        )
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if start == LFS_POINTER:
        raise ModelError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, "
            "or fetch the model with `hf download`"
        )


def _is_there(path: Path) -> bool:
    """Whether the folder has an entry of this name, also when it is a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def _no_weights(folder: Path) -> ModelError:
    """The error for a folder without any file that counts, with what is there instead."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    for adapter in ADAPTERS:
        if _is_there(folder / adapter):
            return ModelError(f"{folder} holds an adapter ({adapter}), not a model: merge it into its model first")
    if others:
        return uncounted(folder, others)
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    return only_pickles(folder, pickled) if pickled else ModelError(f"{folder} has no .safetensors weights")


class TensorHeader(NamedTuple):
    """Where a tensor is stored, its type as safetensors names it (F32, BF16, F8_E4M3, …), and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class TensorFiles:
    """The tensors of a folder's weight files, by name; each is read when it is asked for."""

    def __init__(self, folder: Path, files: list[Path] | None = None) -> None:
        self.folder = folder
        self.files = weight_files(folder) if files is None else files
        self.headers = _headers(self.files)
        self._alike: dict[frozenset[str], bool] = {}

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self.headers)

    @property
    def stored_bytes(self) -> int:
        """The size of the files."""
        return sum(path.stat().st_size for path in self.files)

    def size_of(self, name: str) -> int:
        """The bytes that a tensor takes in its file."""
        header = self.headers[name]
        return math.prod(header.shape) * BYTES.get(header.dtype, 1)

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped from its file: memory is taken as its pages are touched."""
        return read_tensor(self.headers[name].file, name)

    def are_alike(self, one: str, other: str) -> bool:
        """Whether two tensors have the same type, shape and bits; they are read for it once."""
        names = frozenset((one, other))
        if names not in self._alike:
            self._alike[names] = _same(self.read(one), self.read(other))
        return self._alike[names]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header of its file."""
        return self.headers[name].shape

    def dtype(self, name: str) -> torch.dtype | None:
        """A tensor's type, from the header of its file; None where it is not as it is read."""
        return DTYPES.get(self.headers[name].dtype)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is stored as plain floating-point values of at least 16 bits."""
        return self.headers[name].dtype in PLAIN_TYPES

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.headers[name].file

    @contextlib.contextmanager
    def slices(self) -> Iterator[Mapping[str, Any]]:
        """All tensors, read where they are indexed; their files stay open meanwhile."""
        from safetensors import safe_open

        with contextlib.ExitStack() as stack:
            streams = {file: stack.enter_context(safe_open(file, framework="pt")) for file in self.files}
            yield {name: streams[header.file].get_slice(name) for name, header in self.headers.items()}


def read_tensor(file: Path, name: str) -> Tensor:
    """A tensor of a safetensors file, mapped from it. Raises ModelError naming the file and the tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stream:
            tensor: Tensor = stream.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: {name} cannot be read ({error}): the file is cut short or damaged") from error


def _headers(files: list[Path]) -> dict[str, TensorHeader]:
    """All tensors in the files. Raises ModelError for damaged files, and for a name that stands for two tensors."""
    from safetensors import SafetensorError, safe_open

    headers: dict[str, TensorHeader] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stream:
                parts = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
                headers_of_file = {
                    name: TensorHeader(file, part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()
                }
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read ({error}): it is cut short or damaged; fetch it again") from error
        for name in sorted(headers_of_file.keys() & headers.keys()):
            if not _same(read_tensor(file, name), read_tensor(headers[name].file, name)):
                raise ModelError(
                    f"{headers[name].file} and {file.name} both hold {name}, with different values: files of two "
                    "models are mixed up in this folder; fetch it again"
                )
        headers = headers_of_file | headers
    return headers
