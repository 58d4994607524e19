"""How a checkpoint stores the tensors of a network: under which names, and merged or split in which way.

transformers renames, stacks and splits tensors while it loads them. A folder is written in the names of the checkpoint
that the network came from, so that every tool which reads that checkpoint reads the folder; what transformers would
make of a tensor is computed when it is written, and compared with the tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.stored_groups import NameReader, StoredGroup, assembled, converted
from llmkick.models.weights import bytes_of


class CheckpointForm:
    """The form in which a network is written: its groups, which cover every tensor to be written exactly once.

    targets: the tensors of the network to be written. source_names: those of the checkpoint that it came from, empty
    where there is none. `unreadable` are the targets that transformers would read under no name.
    """

    def __init__(self, network: Any, targets: Sequence[str], source_names: Iterable[str]) -> None:
        self.network = network
        self.reader = NameReader(network)
        self._group_of: dict[str, StoredGroup] = {}
        self._used: set[str] = set()
        left = set(targets)
        left -= self._take(self.reader.groups(source_names), left)
        if left:  # stored in another form there: quantized, or packed
            left -= self._take(self.reader.groups(_default_names(network)), left)
        self.unreadable = [name for name in sorted(left) if not self._take_single(name)]

    @property
    def groups(self) -> list[StoredGroup]:
        """All groups, in the order of the network's tensors."""
        unique = {id(group): group for group in self._group_of.values()}
        return list(unique.values())

    @property
    def sources(self) -> set[str]:
        """The names of all tensors that are written."""
        return set(self._used)

    def refuse_unreadable(self) -> None:
        """Raise ModelError when there is a tensor that transformers would not read back."""
        if self.unreadable:
            raise ModelError(
                f"{self.unreadable[0]} cannot be written: transformers {_version()} reads it under no name that "
                "follows from those of the checkpoint; use --packed, which stores the tensors of the network itself"
            )

    def name_of(self, target: str) -> str | None:
        """The name under which a tensor is stored as it is; None where it is merged, split or not written."""
        group = self._group_of.get(target)
        return group.sources[0] if group is not None and group.converter is None else None

    def stored(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, tensor) for tensors of the network: whole groups, one group at a time.

        Raises ModelError where transformers would not make the same tensors out of them.
        """
        for group in dict.fromkeys(self._group_of[name] for name in tensors if name in self._group_of):
            yield from self._pieces(group, {name: tensors[name] for name in group.targets}).items()

    def groups_of(self, names: Collection[str]) -> list[StoredGroup]:
        """The groups of which all targets are among these names."""
        groups = dict.fromkeys(self._group_of[name] for name in names if name in self._group_of)
        return [group for group in groups if all(target in names for target in group.targets)]

    def planned(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `stored` will give for all tensors, on the meta device: names, types and shapes.

        state: the tensors of the network. Those on the meta device do not show whether transformers can put them
        together again; `stored` finds out.
        """
        planned: dict[str, Tensor] = {}
        for group in self.groups:
            tensors = {name: state[name] for name in group.targets}
            pieces: Mapping[str, Tensor] | None
            if group.converter is None:
                pieces = {group.sources[0]: tensors[group.targets[0]]}
            elif any(tensor.is_meta for tensor in tensors.values()):
                pieces = _taken_apart(group, tensors, self.network) or tensors
            else:
                pieces = self._pieces(group, tensors)
            planned |= {n: torch.empty(piece.shape, dtype=piece.dtype, device="meta") for n, piece in pieces.items()}
        return planned

    def _pieces(self, group: StoredGroup, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if group.converter is None:
            return {group.sources[0]: tensors[group.targets[0]]}
        pieces = _taken_apart(group, tensors, self.network)
        if pieces is not None and _is_restored(group, pieces, tensors, self.network):
            return pieces
        # transformers also reads the names of its networks, unless a conversion of them comes in between.
        groups = self.reader.groups(group.targets)
        if all(other.converter is None and other.sources == other.targets for other in groups) and len(groups) == len(
            tensors
        ):
            return dict(tensors)
        raise ModelError(
            f"{group.targets[0]} cannot be written: what transformers {_version()} reads from {group.sources[0]} "
            "differs from it; use --packed, which stores the tensors of the network itself"
        )

    def _take(self, groups: Iterable[StoredGroup], wanted: set[str]) -> set[str]:
        """Use those groups whose targets are all wanted; returns the targets that they cover."""
        covered: set[str] = set()
        for group in groups:
            free = not self._used & set(group.sources)
            if free and set(group.targets) <= wanted - covered:
                self._group_of |= dict.fromkeys(group.targets, group)
                self._used |= set(group.sources)
                covered |= set(group.targets)
        return covered

    def _take_single(self, target: str) -> bool:
        """Store a tensor under the name that its neighbours suggest, or its own, whichever transformers reads."""
        for name in dict.fromkeys((self._like_neighbours(target), target)):
            groups = [group for group in self.reader.groups([name]) if group.converter is None]
            if self._take(groups, {target}):
                return True
        return False

    def _like_neighbours(self, target: str) -> str:
        """The name with the prefix that the tensor with the most similar name has in the checkpoint."""
        parts = target.split(".")
        best: tuple[int, str] = (0, target)
        for other, group in self._group_of.items():
            if group.converter is not None:
                continue
            here, there = other.split("."), group.sources[0].split(".")
            same = _common(reversed(here), reversed(there))
            prefix = len(here) - same
            alike = _common(parts, here)
            if alike >= max(prefix, 1) and alike > best[0]:
                best = alike, ".".join(there[: len(there) - same] + parts[prefix:])
        return best[1]


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    """The number of equal elements at the start of both."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _default_names(network: Any) -> list[str]:
    """The names that transformers would give to the network's tensors in a checkpoint."""
    from transformers.core_model_loading import revert_weight_conversion

    plain = copy.copy(network)
    plain._weight_conversions = None  # those of its loading may belong to a quantizer
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    return list(revert_weight_conversion(plain, shapes))


def _taken_apart(group: StoredGroup, tensors: Mapping[str, Tensor], network: Any) -> dict[str, Tensor] | None:
    """The stored tensors of a group; None where the conversion cannot be reversed to just these names."""
    back, key = group.converter.reverse_transform(), ""
    for target in group.targets:
        name, pattern = back.rename_source_key(target)
        if pattern is None:
            return None
        key = key or name
        back.add_tensor(name, target, pattern, tensors[target])
    pieces = converted(back, key, network)
    if pieces is None or set(pieces) != set(group.converted_names):
        return None
    names = zip(group.sources, group.converted_names, strict=True)
    return {source: pieces[middle].contiguous() for source, middle in names}


def _is_restored(group: StoredGroup, pieces: Mapping[str, Tensor], tensors: Mapping[str, Tensor], network: Any) -> bool:
    """Whether transformers makes the tensors of the network out of the stored ones, bit for bit."""
    made = assembled(group, pieces, network)
    return made is not None and all(name in made and same_bits(made[name], tensors[name]) for name in group.targets)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits: a NaN equals itself, and −0 differs from 0."""
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(bytes_of(one), bytes_of(other))


def _version() -> str:
    import transformers

    return transformers.__version__
