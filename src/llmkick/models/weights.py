"""Digests of a network's weights, and a check that they are finite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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


def weights_digest(network: nn.Module) -> str:
    """Hex sha256 over every parameter and buffer of the state dict, in name order."""
    return combined_digest({name: digest_of(tensor) for name, tensor in network.state_dict().items()})


def combined_digest(digests: Mapping[str, str]) -> str:
    """Hex sha256 of a network from those of its tensors, by their name in its state dict."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of(tensor: Tensor) -> str:
    """Hex sha256 of a tensor's type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(memoryview(bytes_of(tensor)))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor's values in row-major order, as a buffer."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    # The stride of a single number may be anything, and a view as bytes needs 1.
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy()
