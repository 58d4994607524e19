"""What a compression method is to the program: how its recipes are written, and the kernel that carries one out.

The methods of this package (`registry.METHODS`) and those of plug-ins are the same kind of object.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.kernels.patterns import NM
from llmkick.compression.recipe import Recipe
from llmkick.plugins import Plugin

if TYPE_CHECKING:
    from torch import Tensor

# (recipe, layer) → the new weight (out, in), alone or with what a report and the compact form need.
Kernel = Callable[[Any, Layer], "WeightResult | Tensor"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as `kick methods` shows it, and as every command uses it.

    parse: what stands after the `@` → the recipe; str(recipe) must be read back as the same recipe. kernel: a
    pure function of recipe and layer, or "module:function", imported when it is first used. `plugin` is filled
    in for methods that an entry point brings.
    """

    summary: str
    examples: tuple[str, ...]
    parse: Callable[[str], Recipe]
    kernel: Kernel | str
    options: tuple[str, ...] = ()
    plugin: Plugin | None = None

    @property
    def origin(self) -> str:
        """Package and version of a plug-in; empty for a method of this package."""
        return "" if self.plugin is None else self.plugin.origin

    def parsed(self, level: str) -> Recipe:
        """The recipe for a level. Raises ConfigError for one that the method does not have."""
        if self.plugin is None:
            return self.parse(level)
        try:
            recipe = self.parse(level)
            text = str(recipe)
            again = self.parse(text.partition("@")[2])
        except Exception as error:
            raise self.plugin.failed(f"to read the level {level!r}", error) from error
        _check_recipe(recipe, again, text, self.plugin)
        return recipe

    def run(self, recipe: Recipe, layer: Layer) -> WeightResult:
        """Compress one layer. A plug-in's exceptions become a KickError that names it and the layer."""
        if self.plugin is None:
            return _as_result(_kernel(self.kernel)(recipe, layer))
        try:
            result = _as_result(_kernel(self.kernel)(recipe, layer))
        except Exception as error:
            raise self.plugin.failed(f"on {layer.name}", error) from error
        _check_result(recipe, result, layer, self.plugin)
        return result


@cache
def plugin_method(plugin: Plugin) -> Method:
    """The method that an entry point brings. Raises ConfigError when it brings something else."""
    found = plugin.load()
    if not isinstance(found, Method):
        raise plugin.broken(f"is {type(found).__name__}, not a llmkick.extend.Method")
    if not found.examples or not all(text.partition("@")[0] == plugin.name for text in found.examples):
        raise plugin.broken(f"needs examples that begin with {plugin.name}@")
    return replace(found, plugin=plugin)


def _kernel(kernel: Kernel | str) -> Kernel:
    if not isinstance(kernel, str):
        return kernel
    module, _, name = kernel.partition(":")
    function: Kernel = getattr(importlib.import_module(module), name)
    return function


def _as_result(result: WeightResult | Tensor) -> WeightResult:
    return result if isinstance(result, WeightResult) else WeightResult(result)


def _check_recipe(recipe: Any, again: Any, text: str, plugin: Plugin) -> None:
    """Refuse what other parts of the program would stumble over much later."""
    if not isinstance(recipe, Recipe) or recipe.method != plugin.name:
        raise plugin.broken(f'made {recipe!r}, not a Recipe whose name is "{plugin.name}"')
    if not text.startswith(f"{plugin.name}@") or "/" in text or len(text.split()) != 1 or again != recipe:
        raise plugin.broken(f"writes its recipe as {text!r}, which is not read back as the same recipe")


def _check_result(recipe: Recipe, result: WeightResult, layer: Layer, plugin: Plugin) -> None:
    """Refuse a weight that is not what the recipe says: sizes and reports would be wrong."""
    import torch

    weight = result.weight
    if not isinstance(weight, torch.Tensor) or weight.shape != layer.weight.shape or not weight.is_floating_point():
        found = f"{tuple(weight.shape)} of {weight.dtype}" if isinstance(weight, torch.Tensor) else type(weight)
        raise plugin.broken(f"made {found} of {layer.name}, a weight of {tuple(layer.weight.shape)}")
    for part in recipe.parts:
        if isinstance(part, NM):
            most = int(weight.reshape(-1, part.group).count_nonzero(dim=1).max())
            if most > part.kept:
                raise plugin.broken(f"left {most} weights in a group of {layer.name}; {part} keeps {part.kept}")
    if recipe.is_rounding and result.grid is None:
        raise plugin.broken(f"rounded {layer.name} without saying its grid: return WeightResult(…, grid=…)")
    if layer.zeroed is not None and bool(weight[layer.zeroed].count_nonzero()):
        raise plugin.broken(f"filled in weights of {layer.name} that the step before pruned: keep layer.zeroed at 0")
