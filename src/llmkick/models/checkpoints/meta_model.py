"""A model whose network is on the meta device: shapes without memory, and the files with its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from llmkick.models.checkpoints.stored_groups import NameReader, StoredGroup, assembled
from llmkick.models.checkpoints.vocabulary import check_vocabulary
from llmkick.models.checkpoints.weight_files import TensorFiles
from llmkick.models.language_model import ModelInfo
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.transformers_model import TransformersModel


@dataclass(frozen=True, kw_only=True)
class MetaModel:
    """A model whose network is on the meta device, its files, and the device on which to compute.

    `obstacle` says why its blocks cannot be read one by one, None when they can; `placement` is the `device` argument
    with which `load_model` would load the whole model. groups: tensor of the network → the tensors of the files from
    which it is made, where it is not one of the same name.
    """

    model: TransformersModel
    files: TensorFiles
    device: torch.device
    placement: str
    obstacle: str | None
    groups: Mapping[str, StoredGroup]

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

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the network by name, in its precision, on the CPU; those of one group are made together."""
        dtypes = self._dtypes
        left = dict.fromkeys(names)
        while left:
            name = next(iter(left))
            stored = self.tied.get(name, name)
            group = self.groups.get(stored)
            if group is None:
                del left[name]
                yield name, self.files.read(stored).to(dtypes[name])
                continue
            # As transformers does: first the precision, then the conversion.
            sources = {source: self.files.read(source).to(dtypes[stored]) for source in group.sources}
            made = assembled(group, sources, self.model.network)
            assert made is not None, f"{stored} could be made without values"
            for target in (other for other in list(left) if self.tied.get(other, other) in made):
                del left[target]
                yield target, made[self.tied.get(target, target)]

    @cached_property
    def _dtypes(self) -> dict[str, torch.dtype]:
        """Types by name, for threads that read while tensors are put into the network."""
        return {name: tensor.dtype for name, tensor in self.model.network.state_dict().items()}

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
    groups = _groups(network, files)
    obstacle = _obstacle(network, files, groups, checkpoint)
    return MetaModel(model=model, files=files, device=target, placement=device, obstacle=obstacle, groups=groups)


def _empty_network(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    try:
        network = meta_network(read_config(checkpoint.folder), dtype=dtype)
        read_generation_config(checkpoint.folder, network)
        _keep_in_float32(network, dtype)
    except ModelError:
        raise
    except Exception as error:
        raise cannot_load(checkpoint, error) from error
    return network


def _keep_in_float32(network: Any, dtype: torch.dtype) -> None:
    """Give those tensors float32 that transformers keeps in it whatever the precision, such as biases of routers."""
    from transformers.core_model_loading import build_glob_alternation

    plan = network._get_dtype_plan(dtype)
    if not plan:
        return
    pattern = build_glob_alternation(list(plan))[0]
    for owner_name, module in network.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None and tensor.is_floating_point() and pattern.search(f"{owner_name}.{key}"):
                    wide = tensor.detach().to(torch.float32)
                    own[key] = nn.Parameter(wide, False) if isinstance(tensor, nn.Parameter) else wide


def _groups(network: Any, files: TensorFiles) -> dict[str, StoredGroup]:
    """How the tensors are made that the files do not hold under their own name."""
    names = files.names
    wanted = set(network.state_dict()) - names - set(network.all_tied_weights_keys)
    if not wanted:
        return {}
    groups = {target: group for group in NameReader(network).groups(names) for target in group.targets}
    return {name: groups[name] for name in wanted if name in groups}


def _shapes(group: StoredGroup, network: Any, files: TensorFiles) -> dict[str, tuple[int, ...]]:
    """The shapes of what is made of a group's tensors; none where it cannot be made."""
    sources = {name: torch.empty(files.shape(name), device="meta") for name in group.sources}
    made = assembled(group, sources, network) or {}
    return {name: tuple(tensor.shape) for name, tensor in made.items()}


def _obstacle(
    network: Any, files: TensorFiles, groups: Mapping[str, StoredGroup], checkpoint: Checkpoint
) -> str | None:
    if checkpoint.packed:
        return "it is already packed"
    if has_packed_integers(checkpoint):
        return "its weights are stored quantized"
    names, tied = files.names, set(network.all_tied_weights_keys)
    shapes: dict[str, tuple[int, ...]] = {}
    for group in {id(group): group for group in groups.values()}.values():
        shapes |= _shapes(group, network, files)
    for name, tensor in network.state_dict().items():
        if name not in names and name not in tied and shapes.get(name) != tuple(tensor.shape):
            return f"transformers makes its {name} out of other tensors when it loads them, in a way of its own"
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
