"""A compression method: how its recipes are written, and the kernel that applies them.

Built-in methods (`registry.METHODS`) and plug-ins are objects of the same class.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from llmkick.compression.kernels.layer import Layer, WeightResult
from llmkick.compression.kernels.patterns import NM
from llmkick.compression.recipe import Recipe
from llmkick.errors import NumericalError
from llmkick.plugins import Plugin

if TYPE_CHECKING:
    from torch import Tensor

# (recipe, layer) → the new weight (out, in), alone or as a WeightResult, with what reports and compact forms need.
Kernel = Callable[[Any, Layer], "WeightResult | Tensor"]
# (recipe, several layers of one shape) → what `Kernel` makes of each of them.
KernelAlike = Callable[[Any, Sequence[Layer]], "Sequence[WeightResult]"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as `kick methods` lists it and as all commands use it.

    summary: one line for `kick methods`. examples: recipes, each beginning with the method's name and `@`. parse: the
    text after the `@` → the recipe; it must read str(recipe) back as the same recipe. kernel: a pure function of recipe
    and layer, or "module:function", which is imported at first use. kernel_alike: does the same for several layers of
    one shape at once, which keeps a GPU busy; None: they are compressed one after another. options: names for error
    messages. plugin: set by llmkick for a method that an entry point provides.
    """

    summary: str
    examples: tuple[str, ...]
    parse: Callable[[str], Recipe]
    kernel: Kernel | str
    kernel_alike: KernelAlike | str | None = None
    options: tuple[str, ...] = ()
    plugin: Plugin | None = None

    @property
    def origin(self) -> str:
        """Package and version of a plug-in; empty for a built-in method."""
        return "" if self.plugin is None else self.plugin.origin

    def parsed(self, level: str) -> Recipe:
        """The recipe for a level. Raises ConfigError for a level that the method does not have."""
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

    def run_alike(self, recipe: Recipe, layers: Sequence[Layer]) -> list[WeightResult]:
        """Compress several layers of one shape. Errors as in `run`."""
        if len(layers) == 1 or self.kernel_alike is None:
            return [self.run(recipe, layer) for layer in layers]
        names = f"{layers[0].name} … {layers[-1].name}"
        try:
            results = [_as_result(result) for result in _imported(self.kernel_alike)(recipe, layers)]
        except Exception as error:
            if self.plugin is None:
                raise
            raise self.plugin.failed(f"on {names}", error) from error
        if self.plugin is not None:
            if len(results) != len(layers):
                raise self.plugin.broken(f"made {len(results)} results of {len(layers)} layers: {names}")
            for result, layer in zip(results, layers, strict=True):
                _check_result(recipe, result, layer, self.plugin)
        return results

    def run(self, recipe: Recipe, layer: Layer) -> WeightResult:
        """Compress one layer. An exception of a plug-in becomes a KickError that names the plug-in and the layer."""
        if self.plugin is None:
            return _as_result(_imported(self.kernel)(recipe, layer))
        try:
            result = _as_result(_imported(self.kernel)(recipe, layer))
        except Exception as error:
            raise self.plugin.failed(f"on {layer.name}", error) from error
        _check_result(recipe, result, layer, self.plugin)
        return result


@cache
def plugin_method(plugin: Plugin) -> Method:
    """The method that an entry point provides. Raises ConfigError when it provides something else."""
    method = plugin.load()
    if not isinstance(method, Method):
        raise plugin.broken(f"is {type(method).__name__}, not a llmkick.extend.Method")
    if not method.examples or not all(text.partition("@")[0] == plugin.name for text in method.examples):
        raise plugin.broken(f"needs examples that begin with {plugin.name}@")
    return replace(method, plugin=plugin)


def _imported(kernel: Function | str) -> Function:
    if not isinstance(kernel, str):
        return kernel
    module, _, name = kernel.partition(":")
    function: Function = getattr(importlib.import_module(module), name)
    return function


def _as_result(result: WeightResult | Tensor) -> WeightResult:
    return result if isinstance(result, WeightResult) else WeightResult(result)


def _check_recipe(recipe: Any, again: Any, text: str, plugin: Plugin) -> None:
    """Refuse a recipe that would cause errors elsewhere, much later."""
    if not isinstance(recipe, Recipe) or recipe.method != plugin.name:
        raise plugin.broken(f'made {recipe!r}, not a Recipe whose name is "{plugin.name}"')
    if not text.startswith(f"{plugin.name}@") or "/" in text or len(text.split()) != 1 or again != recipe:
        raise plugin.broken(f"writes its recipe as {text!r}, which is not read back as the same recipe")


def _check_result(recipe: Recipe, result: WeightResult, layer: Layer, plugin: Plugin) -> None:
    """Refuse a weight that does not match the recipe: sizes and reports would be wrong."""
    import torch

    weight = result.weight
    if not isinstance(weight, torch.Tensor) or weight.shape != layer.weight.shape or not weight.is_floating_point():
        made = f"{tuple(weight.shape)} of {weight.dtype}" if isinstance(weight, torch.Tensor) else type(weight)
        raise plugin.broken(f"made {made} of {layer.name}, a weight of {tuple(layer.weight.shape)}")
    if not bool(weight.isfinite().all()):
        raise NumericalError(f"{plugin} made NaN or Inf of {layer.name} with {recipe}")
    for part in recipe.parts:
        if isinstance(part, NM):
            most = int(weight.reshape(-1, part.group).count_nonzero(dim=1).max())
            if most > part.kept:
                raise plugin.broken(f"left {most} weights in a group of {layer.name}; {part} keeps {part.kept}")
    if recipe.is_rounding and result.grid is None:
        raise plugin.broken(f"rounded {layer.name} without saying its grid: return WeightResult(…, grid=…)")
    if layer.zeroed is not None and bool(weight[layer.zeroed].count_nonzero()):
        raise plugin.broken(f"filled in weights of {layer.name} that the step before pruned: keep layer.zeroed at 0")
