"""A model as a checkpoint stores it: its tensors in the form of its source, and the parts that its network lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.storage.checkpoint_form import CheckpointForm, same_bits
from llmkick.compression.storage.shards import size_of
from llmkick.models.checkpoints.packed_folder import MANIFEST
from llmkick.models.checkpoints.plain_tensors import open_tensors
from llmkick.models.checkpoints.weight_files import TensorFiles
from llmkick.models.transformers_model import TransformersModel

# Keys of a packed folder's manifest: the names in the checkpoint that it came from, and the file with other parts.
NAMES, OTHER = "names", "other"


class StoredModel:
    """How a model is written as a checkpoint.

    `names` are the tensors of its network that are written: all but those tied to another and those that transformers
    never saves. `others` are the tensors of its source that the network does not load, such as a vision tower beside
    the language model; they are copied.
    files: those of the source, if they are open. Raises ModelError for a network that cannot be written so that
    transformers reads it back.
    """

    def __init__(self, model: TransformersModel, files: TensorFiles | None = None) -> None:
        network = model.network
        self._state: dict[str, Tensor] = network.state_dict()
        self._twins: Mapping[str, str] = network.all_tied_weights_keys
        self._source = _SourceTensors(model, files)
        never = set(network._keys_to_ignore_on_save or ())
        self.names = [name for name in self._state if name not in never and not self._is_tied(name)]
        self.form = CheckpointForm(network, self.names, self._source.names)
        self.others = self._left_over()

    def planned(self) -> dict[str, Tensor]:
        """All tensors of the checkpoint by name, on the meta device, which have their types and shapes."""
        return {**self.form.planned(self._state), **{name: self._source.described(name) for name in self.others}}

    def tensors(self, of_network: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, tensor) for tensors of the network, see `CheckpointForm.stored`."""
        wanted = set(self.names)
        return self.form.stored(LazyTensors([n for n in of_network if n in wanted], of_network.__getitem__))

    def other_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for the other parts, read one at a time."""
        for name in self.others:
            yield name, self._source.read(name)

    @property
    def other_bytes(self) -> int:
        """The size of the other parts in bytes."""
        return sum(size_of(self._source.described(name)) for name in self.others)

    def stem_of(self, layer: str) -> str | None:
        """What stands before `weight` in the name of a layer's weight in the checkpoint; None where it is merged."""
        name = self.form.name_of(f"{layer}.weight")
        return None if name is None else name.removesuffix("weight")

    @property
    def stored_names(self) -> list[str]:
        """The names of all tensors in the checkpoint."""
        return sorted({*self.form.sources, *self.others})

    def _is_tied(self, name: str) -> bool:
        """Whether a tensor is tied to another: to be, and in memory."""
        twin = self._state.get(self._twins.get(name, ""))
        tensor = self._state[name]
        return twin is not None and (tensor.is_meta or tensor.data_ptr() == twin.data_ptr())

    def _left_over(self) -> list[str]:
        """The tensors of the source that the network does not hold, and so are copied."""
        targets = self.form.reader.targets(self._source.names - self.form.sources)
        copied = []
        for name, target in targets.items():
            if target not in self._state or (target not in self.names and self._differs_from_twin(name, target)):
                copied.append(name)
        return sorted(copied)

    def _differs_from_twin(self, name: str, target: str) -> bool:
        """Whether the source stores a tied tensor with values of its own."""
        twin = self._twins.get(target)
        stored = None if twin is None or twin not in self.names else self.form.name_of(twin)
        if stored is None or stored not in self._source.names:
            return False
        return not self._source.are_alike(name, stored)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, names: list[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _SourceTensors:
    """The tensors in the files that a model came from: all names, and reading by name."""

    def __init__(self, model: TransformersModel, files: TensorFiles | None) -> None:
        self.names: set[str] = set()
        self._dtype: torch.dtype = getattr(torch, model.info.dtype)
        self._quantized = False
        checkpoint = model.checkpoint
        if checkpoint is None:
            return
        if checkpoint.packed:
            manifest: dict[str, Any] = json.loads((checkpoint.folder / MANIFEST).read_text(encoding="utf-8"))
            self.names = set(manifest.get(NAMES, ()))
            other = manifest.get(OTHER)
            self._files = TensorFiles(checkpoint.folder, [checkpoint.folder / str(other)] if other else [])
        else:
            self._quantized = bool(checkpoint.quantization)
            self._files = files or open_tensors(checkpoint.folder)
            self.names = self._files.names

    def described(self, name: str) -> Tensor:
        """A tensor on the meta device: type and shape of what `read` gives, without reading it."""
        dtype = self._files.dtype(name)
        if self._quantized and (dtype is None or dtype.is_floating_point):
            dtype = self._dtype
        if dtype is None:
            return self.read(name).to("meta")
        return torch.empty(self._files.shape(name), dtype=dtype, device="meta")

    def are_alike(self, one: str, other: str) -> bool:
        """Whether `read` gives the same bits for both."""
        return self._files.are_alike(one, other) or (self._quantized and same_bits(self.read(one), self.read(other)))

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU. Of a packed folder only those of other parts can be read."""
        tensor = self._files.read(name)
        # Weights that were stored quantized are computed in float32.
        return tensor.to(self._dtype) if self._quantized and tensor.is_floating_point() else tensor
