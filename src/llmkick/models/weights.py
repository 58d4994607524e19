"""Digests of a network's weights, and a check that they are finite."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmkick.errors import NumericalError
from llmkick.models.finite import all_finite


def check_finite(network: nn.Module) -> None:
    """Raise NumericalError, which names the first tensor with a NaN or an Inf."""
    for name, parameter in network.named_parameters():
        if type(parameter) is not nn.Parameter:
            continue  # packed by a library with classes of its own, whose values cannot be read this way
        if not all_finite(parameter):
            raise NumericalError(f"the weights of {name} hold NaN or Inf values: the checkpoint is damaged")


def weights_digest(network: nn.Module, known: Mapping[str, str] | None = None) -> str:
    """Hex sha256 over every parameter and buffer of the state dict, in name order.

    known: digests of tensors by name, which are not computed again. Tied tensors are hashed once.
    """
    digests: dict[str, str] = {}
    of_memory: dict[object, str] = {}
    for name, tensor in network.state_dict().items():
        place = tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        digest = (known or {}).get(name) or of_memory.get(place) or digest_of(tensor)
        digests[name] = of_memory[place] = digest
    return combined_digest(digests)


def combined_digest(digests: Mapping[str, str]) -> str:
    """Hex sha256 of a network from those of its tensors, by their name in its state dict."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of(tensor: Tensor) -> str:
    """Hex sha256 of a tensor's type, shape and values."""
    digest = PartedDigest(tensor.dtype, tensor.shape)
    digest.add(0, tensor)
    return digest.hexdigest()


class PartedDigest:
    """`digest_of` a tensor that comes in parts, which follow one another in row-major order, such as experts.

    shape: of the whole. Parts may come in any order; one that comes before its turn is held until then.
    """

    def __init__(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._digest = hashlib.sha256(f"{dtype}\0{self.shape}\0".encode())
        self._left = math.prod(shape) * dtype.itemsize
        self._next = 0
        self._waiting: dict[int, Tensor] = {}

    def add(self, number: int, part: Tensor) -> None:
        """Add the part with this number, counted from 0."""
        self._waiting[number] = part
        while self._next in self._waiting:
            data = memoryview(bytes_of(self._waiting.pop(self._next)))
            self._digest.update(data)
            self._left -= data.nbytes
            self._next += 1

    @property
    def is_complete(self) -> bool:
        """Whether all parts are there."""
        return self._left == 0 and not self._waiting

    def hexdigest(self) -> str:
        """The digest; all parts must be there."""
        assert self.is_complete, f"{self._left} bytes are missing, {len(self._waiting)} parts wait"
        return self._digest.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor's values in row-major order, as a buffer."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    # The stride of a single number may be anything, and a view as bytes needs 1.
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()
