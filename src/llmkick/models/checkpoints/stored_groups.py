"""Which tensors of a checkpoint make which of a network: the renaming, merging and splitting of transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredGroup:
    """Tensors of a checkpoint (`sources`), and those of a network that transformers makes out of them (`targets`).

    converter: the conversion, None where it is a change of name; it sees the sources as `patterns`, under the names
    `converted_names`.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()
    converted_names: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Collected:
    """A group while its sources are being collected."""

    converter: Any
    sources: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    converted_names: list[str] = field(default_factory=list)


class NameReader:
    """Reads names of a checkpoint as transformers does when it loads a network without a quantizer."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._state: dict[str, Tensor] = network.state_dict()

    def groups(self, names: Iterable[str]) -> list[StoredGroup]:
        """The groups that these names of a checkpoint form; names of nothing in the network are in none."""
        collected: dict[str, _Collected] = {}
        for name, (target, converter, pattern, middle) in self._read_all(names).items():
            if target not in self._state:
                continue
            group = collected.setdefault(target, _Collected(converter=converter))
            if group.converter is not converter or (converter is None and group.sources):
                continue  # a second name of the same tensor, of which transformers reads the first
            group.sources.append(name)
            group.patterns.append(pattern)
            group.converted_names.append(middle)
        made = (self._group(target, group) for target, group in collected.items())
        return [group for group in made if group is not None]

    def targets(self, names: Iterable[str]) -> dict[str, str]:
        """Names in a checkpoint → the names that transformers looks for in the network."""
        return {name: target for name, (target, *_) in self._read_all(names).items()}

    def _read_all(self, names: Iterable[str]) -> dict[str, tuple[str, Any, str, str]]:
        """For each name: the target, the converter that makes it (or None), its pattern, the name that it sees."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        # Made anew for every reading, because some of them remember what they have seen.
        transforms = get_model_conversion_mapping(self._network)
        renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        read = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern, middle = self._read(name, renamings, converters)
            read[name] = target, None if pattern is None else converter_of[pattern], pattern or "", middle
        return read

    def _read(self, name: str, renamings: list[Any], converters: list[Any]) -> tuple[str, str | None, str]:
        """The target of a name, the pattern of the converter that makes it, and the name that the converter sees."""
        from transformers.core_model_loading import apply_renamings, rename_source_key

        prefix = self._network.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, self._state)
        if target not in self._state and name in self._state:  # as transformers: a name that needs no change
            target, pattern = rename_source_key(name, [], [], prefix, self._state)
            return target, pattern, name
        return target, pattern, apply_renamings(name, renamings)

    def _group(self, target: str, group: _Collected) -> StoredGroup | None:
        """The finished group; None where the names of its targets cannot be told."""
        targets = [target]
        if group.converter is not None:
            first, *others = group.converter.target_patterns
            targets += [target.replace(first, other) for other in others]
        if len(set(targets)) < len(targets) or not all(name in self._state for name in targets):
            return None
        return StoredGroup(
            targets=tuple(targets),
            sources=tuple(group.sources),
            converter=group.converter,
            patterns=tuple(group.patterns),
            converted_names=tuple(group.converted_names),
        )


def assembled(group: StoredGroup, sources: Mapping[str, Tensor], network: Any) -> dict[str, Tensor] | None:
    """The tensors that transformers makes of those in a checkpoint, by their names in the network; None where it fails.

    sources: by name, in the precision of the network, or on the meta device for types and shapes alone.
    """
    if group.converter is None:
        return {group.targets[0]: sources[group.sources[0]]}
    forward = copy.deepcopy(group.converter)
    for source, pattern in zip(group.sources, group.patterns, strict=True):
        forward.add_tensor(group.targets[0], source, pattern, sources[source])
    return converted(forward, group.targets[0], network)


def converted(converter: Any, key: str, network: Any) -> dict[str, Tensor] | None:
    """The result of a conversion of transformers; None where it fails, in whatever way."""
    try:
        made = converter.convert(key, model=network, config=network.config)
    except Exception:  # noqa: BLE001 - each conversion fails in a way of its own
        return None
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
