"""What a compression hands on while it is in memory: the layers of a finished block, and the tensors of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmkick.models.checkpoints.packed import Packed
from llmkick.models.weights import PartedDigest


@dataclass(frozen=True, kw_only=True)
class KeptBlock:
    """The layers of a finished block: their compact forms by name, and the file that was just written of them.

    digests: of parameters that the layers make up, by their names in the network. wholes: see `write_packed`; None for
    a block that was read from its file.
    """

    file: Path
    layers: Mapping[str, Packed]
    digests: Mapping[str, str]
    wholes: Mapping[str, PartedDigest] | None = None

    @property
    def parameters(self) -> set[str]:
        """The names in the network of all parameters that the layers make up."""
        places = {name: packed.layout.place for name, packed in self.layers.items()}
        return {name if place is None else place.parameter for name, place in places.items()}


# What is done with a block beside keeping its layers; returns digests of its other tensors.
BlockFinish = Callable[[KeptBlock], dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class NetworkPart:
    """Some tensors of a compressed network by name, and their digests, as far as they are known.

    kept: of the tensors of a block, its layers.
    """

    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]
    kept: KeptBlock | None = None

    @property
    def unchanged(self) -> dict[str, Tensor]:
        """The tensors that no layer makes up."""
        layers = set[str]() if self.kept is None else self.kept.parameters
        return {name: tensor for name, tensor in self.tensors.items() if name not in layers}


# Is given all tensors of a compressed network, some at a time and each once.
PartSink = Callable[[NetworkPart], None]
