"""Public names of a module that are imported when they are first read, so that importing the module stays fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any


def lazy_names(
    namespace: MutableMapping[str, Any], homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a module; `namespace` is its globals, `homes` maps module → names."""
    home_of = {name: module for module, names in homes.items() for name in names}

    def read(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        namespace[name] = getattr(importlib.import_module(home_of[name]), name)
        return namespace[name]

    def listed() -> list[str]:
        return sorted({*namespace, *namespace["__all__"]})

    return read, listed
