"""A model whose network is on the meta device: shapes without memory, and the files with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkick.errors import ModelError
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.accounting import account
from llmkick.models.checkpoints.loading import (
    cannot_load,
    describe,
    meta_network,
    read_config,
    read_generation_config,
    read_tokenizer,
    tokenizer_in,
)
from llmkick.models.checkpoints.plain_tensors import open_tensors
from llmkick.models.checkpoints.quantized import has_packed_integers
from llmkick.models.checkpoints.references import locate, small_files
from llmkick.models.checkpoints.vocabulary import check_vocabulary
from llmkick.models.checkpoints.weight_files import TensorFiles
from llmkick.models.language_model import ModelInfo
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.transformers_model import TransformersModel


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
    files = open_tensors(checkpoint.folder)
    if not checkpoint.packed and not has_packed_integers(checkpoint):
        account(network, files, precision)
    info = describe(network, checkpoint, precision)
    model = TransformersModel.wrap(network, read_tokenizer(checkpoint), info, checkpoint=checkpoint)
    check_vocabulary(model)
    obstacle = _obstacle(network, files, checkpoint, precision)
    return MetaModel(model=model, files=files, device=target, placement=device, obstacle=obstacle)


def _empty_network(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    try:
        network = meta_network(read_config(checkpoint.folder), dtype=dtype)
        read_generation_config(checkpoint.folder, network)
    except ModelError:
        raise
    except Exception as error:
        raise cannot_load(checkpoint, error) from error
    return network


def _obstacle(network: Any, files: TensorFiles, checkpoint: Checkpoint, dtype: torch.dtype) -> str | None:
    if checkpoint.packed:
        return "it is already packed"
    if has_packed_integers(checkpoint):
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
