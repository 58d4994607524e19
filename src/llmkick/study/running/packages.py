"""The packages whose versions can change the answers of a study, which all machines of a cluster must share."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from llmkick.compression.recipe import is_trained, steps_of
from llmkick.compression.registry import method_named
from llmkick.study.spec.study import Study

# Packages whose version can change the answers of every study.
PACKAGES = ("llmkick", "torch", "transformers", "tokenizers")


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package, "none" for one that is not installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def packages_of(study: Study) -> list[str]:
    """Return the packages whose version can change the answers of a study: ours, plug-ins, peft for a training."""
    packages = list(PACKAGES)
    for recipe in (level.recipe for level in study.recipe_levels()):
        plugins = (method_named(step.method).plugin for step in steps_of(recipe))
        packages += [plugin.package for plugin in plugins if plugin is not None]
        packages += ["peft"] if is_trained(recipe) else []
    return list(dict.fromkeys(packages))
