"""A model whose network is on the meta device: shapes without memory, and the files with its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.loading import (
    cannot_load,
    describe,
    meta_network,
    read_config,
    read_tokenizer,
    tokenizer_in,
)
from llmkick.models.checkpoints.references import locate, small_files
from llmkick.models.language_model import ModelInfo
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.transformers_model import TransformersModel


class TensorFiles:
    """The tensors of a folder's safetensors files, by name; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = _index(folder)

    @property
    def names(self) -> set[str]:
        """All names in the files."""
        return set(self._file_of)

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped from its file: memory is taken as its pages are touched."""
        from safetensors import SafetensorError, safe_open

        file = self.folder / self._file_of[name]
        try:
            with safe_open(file, framework="pt") as stream:
                tensor: Tensor = stream.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: {name} cannot be read ({error}): the file is cut short or damaged") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header of its file."""
        from safetensors import safe_open

        with safe_open(self.folder / self._file_of[name], framework="pt") as stream:
            return tuple(stream.get_slice(name).get_shape())


def _index(folder: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    listed = folder / "model.safetensors.index.json"
    try:
        if listed.is_file():
            files: dict[str, str] = json.loads(listed.read_text(encoding="utf-8"))["weight_map"]
            return files
        file_of = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stream:
                file_of.update(dict.fromkeys(stream.keys(), file.name))
        return file_of
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: its safetensors files cannot be read ({error})") from error


@dataclass(frozen=True, kw_only=True)
class MetaModel:
    """A model whose network is on the meta device, its files, and the device on which to compute.

    `obstacle` says why its blocks cannot be read one by one, None when they can; `placement` is the `device` argument
    with which `load_model` would load the whole model.
    """

    model: TransformersModel
    files: TensorFiles
    device: torch.device
    placement: str
    obstacle: str | None

    @property
    def checkpoint(self) -> Checkpoint:
        """The files of the model."""
        assert self.model.checkpoint is not None
        return self.model.checkpoint

    @property
    def info(self) -> ModelInfo:
        """The identity of the model."""
        return self.model.info

    @property
    def tied(self) -> dict[str, str]:
        """Names in the state dict of tied tensors → the name of the tensor they are tied to."""
        tied: dict[str, str] = self.model.network.all_tied_weights_keys
        return tied

    @property
    def bytes(self) -> int:
        """Bytes of memory that all weights would take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.network.parameters())


def load_meta_model(reference: str, *, dtype: str = "auto", device: str = "auto") -> MetaModel:
    """The meta model of a reference; it takes the arguments and raises the errors of `load_model`."""
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    checkpoint = locate(reference)
    network = _empty_network(checkpoint, precision)
    info = describe(network, checkpoint, precision)
    model = TransformersModel.wrap(network, read_tokenizer(checkpoint), info, checkpoint=checkpoint)
    files = TensorFiles(checkpoint.folder)
    obstacle = _obstacle(network, files, checkpoint, precision)
    return MetaModel(model=model, files=files, device=target, placement=device, obstacle=obstacle)


def _empty_network(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    try:
        return meta_network(read_config(checkpoint.folder), dtype=dtype)
    except Exception as error:
        raise cannot_load(checkpoint, error) from error


def _obstacle(network: Any, files: TensorFiles, checkpoint: Checkpoint, dtype: torch.dtype) -> str | None:
    if checkpoint.packed:
        return "it is already packed"
    if getattr(network.config, "quantization_config", None) is not None:
        return "its weights are stored quantized"
    kept = getattr(network, "_keep_in_fp32_modules", None) or getattr(network, "_keep_in_fp32_modules_strict", None)
    if kept and dtype != torch.float32:
        return "parts of it stay in float32 whatever the precision"
    names, tied = files.names, set(network.all_tied_weights_keys)
    for name, tensor in network.state_dict().items():
        if name not in names and name not in tied:
            return f"transformers makes its {name} out of other tensors when it loads them"
        if name in names and files.shape(name) != tuple(tensor.shape):
            return f"its {name} has shape {files.shape(name)} on disk, but {tuple(tensor.shape)} in the network"
    return None


@dataclass(frozen=True, kw_only=True)
class ModelStructure:
    """A network on the meta device and its tokenizer, from the small files of a model: its weights are not needed."""

    folder: Path
    network: Any
    tokenizer: Any

    @property
    def parameters(self) -> int:
        """The number of weights of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def load_structure(reference: str) -> ModelStructure:
    """The structure of the model behind a reference; none of its weights is read, and none fetched from the hub.

    Raises ModelError for a reference without files, and the errors of transformers and of the hub.
    """
    folder = small_files(reference)
    tokenizer = tokenizer_in(folder)
    return ModelStructure(folder=folder, network=meta_network(read_config(folder)), tokenizer=tokenizer)
