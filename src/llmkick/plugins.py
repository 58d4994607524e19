"""Plug-ins: methods, tasks and models that other installed packages add, through entry points.

A plug-in is enabled by installing its package, and in no other way. None of its code runs before one of its names is
used or listed; `kick --help` runs nothing.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmkick.errors import ConfigError, KickError

# Names of entry point groups, not of modules.
GROUPS = METHODS, TASKS, MODELS = tuple(f"llmkick.{kind}" for kind in ("methods", "tasks", "models"))


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """An entry point; `reference` is the `module:attribute` of its object."""

    group: str
    name: str
    package: str
    version: str
    reference: str

    def __str__(self) -> str:
        return f"plug-in {self.name!r} of {self.origin} (entry point {self.group}: {self.name} = {self.reference})"

    @property
    def origin(self) -> str:
        """Package and version: part of the key of every result that the plug-in makes."""
        return f"{self.package} {self.version}"

    def load(self) -> Any:
        """The object of the entry point. Raises ConfigError naming package, entry point and reason."""
        try:
            entry = importlib.metadata.EntryPoint(name=self.name, value=self.reference, group=self.group)
            return entry.load()
        except (Exception, SystemExit) as error:
            raise self.broken(f"cannot be loaded: {describe(error)}") from error

    def broken(self, why: str) -> ConfigError:
        """The error that says what is wrong with the plug-in and what to do."""
        return ConfigError(f"{self} {why}; update or uninstall {self.package}")

    def failed(self, doing: str, error: Exception) -> KickError:
        """The error for an exception of the plug-in's code; a KickError is returned as it is."""
        if isinstance(error, KickError):
            return error
        return KickError(f"{self} failed {doing}: {describe(error)}")


def describe(error: BaseException) -> str:
    """An exception's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


@cache
def installed(group: str) -> tuple[Plugin, ...]:
    """All entry points of a group, sorted by name; none of them is loaded."""
    entry_points = []
    for entry in importlib.metadata.entry_points(group=group):
        package, version = ("an unknown package", "?") if entry.dist is None else (entry.dist.name, entry.dist.version)
        plugin = Plugin(group=group, name=entry.name, package=package, version=version, reference=entry.value)
        entry_points.append(plugin)
    return tuple(sorted(entry_points, key=lambda plugin: (plugin.name, plugin.package)))


def usable(group: str, builtin: Collection[str]) -> Mapping[str, Plugin]:
    """The plug-ins of a group with a valid name that nothing else has, by name."""
    refused = {plugin for plugin, _ in _refused(group, builtin)}
    return {plugin.name: plugin for plugin in installed(group) if plugin not in refused}


def problems(group: str, builtin: Collection[str]) -> list[str]:
    """Why entry points of a group are not used, a line each."""
    return [str(plugin.broken(why)) for plugin, why in _refused(group, builtin)]


def refuse_clash(group: str, name: str, builtin: Collection[str]) -> None:
    """Raise ConfigError when plug-ins offer `name`, but none of them can be used."""
    for plugin, why in _refused(group, builtin):
        if plugin.name == name and name not in builtin:
            raise plugin.broken(why)


def _refused(group: str, builtin: Collection[str]) -> list[tuple[Plugin, str]]:
    plugins = installed(group)
    often = Counter(plugin.name for plugin in plugins)
    refused = []
    for plugin in plugins:
        others = [other.package for other in plugins if other.name == plugin.name and other != plugin]
        if plugin.name in builtin:
            refused.append((plugin, f"is not used: {plugin.name!r} is built in, and a plug-in cannot replace it"))
        elif not re.fullmatch(r"[a-z][a-z0-9_]*", plugin.name):
            refused.append((plugin, "is not used: a name is lower-case letters, digits and _, a letter first"))
        elif often[plugin.name] > 1:
            refused.append((plugin, f"is not used: {', '.join(others)} offers the same name"))
    return refused
