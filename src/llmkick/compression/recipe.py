"""Recipes: what a person types, `wanda@2:4`, and its typed, frozen form; each converts into the other."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import llmkick.plugins as plugins
from llmkick.compression.levels import (
    BITS,
    NM,
    Grid,
    Pattern,
    Unstructured,
    parse_grid,
    parse_pattern,
    refuse_two_patterns,
)
from llmkick.compression.methods import Method, plugin_method
from llmkick.errors import ConfigError

__all__ = [
    "BITS",
    "GPTQ",
    "METHODS",
    "NM",
    "RTN",
    "Chain",
    "Dense",
    "Grid",
    "Magnitude",
    "Pattern",
    "Recipe",
    "SparseGPT",
    "Unstructured",
    "Wanda",
    "all_methods",
    "method_named",
    "parse_recipe",
    "plugin_origins",
]


class Recipe:
    """What is to be done to every linear layer: the base of all recipes, with what the program asks of one.

    A method's own is a frozen dataclass with its `name` and what it needs to know of a layer's inputs: "nothing",
    their "squares" (the mean square of each) or their "moments" (Σ x xᵀ too). Its fields that are a pattern or a
    grid are found by their type.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Literal["nothing", "squares", "moments"]] = "nothing"
    needs_hessian_alone: ClassVar[bool] = False  # of the moments it never asks for the mean squares

    def __str__(self) -> str:
        return f"{self.method}@{'+'.join(map(str, self.parts))}"

    @property
    def parts(self) -> tuple[Pattern | Grid, ...]:
        """The pattern and the grid, as far as there are any."""
        return tuple(part for part in vars(self).values() if isinstance(part, Unstructured | NM | Grid))

    @property
    def method(self) -> str:
        """Name of the method as typed before the `@`; those of a chain joined by `+`."""
        return self.name

    @property
    def needs_calibration(self) -> bool:
        """Whether the layer's inputs on calibration text are needed."""
        return self.needs != "nothing"

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs' full second moments are needed, not only their mean squares."""
        return self.needs == "moments"

    @property
    def needs_squares(self) -> bool:
        """Whether the inputs' mean squares are needed as such, not only the moments whose diagonal they are."""
        return self.needs_calibration and not self.needs_hessian_alone

    @property
    def is_rounding(self) -> bool:
        """Whether the weights end on an integer grid."""
        return self.bits is not None

    @property
    def sparsity(self) -> float | None:
        """Nominal share of zeros; None for a recipe that does not prune."""
        return next((part.sparsity for part in self.parts if not isinstance(part, Grid)), None)

    @property
    def bits(self) -> int | None:
        """Bits of the integer grid; None for a recipe that does not round."""
        return next((part.bits for part in self.parts if isinstance(part, Grid)), None)

    @property
    def multiple(self) -> int:
        """The number that a layer's input width must be divisible by: M of N:M."""
        return math.lcm(*(part.group for part in self.parts if isinstance(part, NM)))

    @property
    def group_size(self) -> int | None:
        """Inputs that share an integer grid; None without groups. The last group of a row may be smaller."""
        return next((part.group_size for part in self.parts if isinstance(part, Grid)), None)


@dataclass(frozen=True, kw_only=True)
class Dense(Recipe):
    """Changes nothing, so that a study can list the dense model beside the compressed ones."""

    name = "dense"

    def __str__(self) -> str:
        return self.method


@dataclass(frozen=True, kw_only=True)
class Magnitude(Recipe):
    """Zero the smallest weights."""

    name = "magnitude"

    pattern: Pattern


@dataclass(frozen=True, kw_only=True)
class Wanda(Recipe):
    """Zero the smallest products of weight and input norm (arXiv 2306.11695)."""

    name = "wanda"
    needs = "squares"

    pattern: Pattern


@dataclass(frozen=True, kw_only=True)
class SparseGPT(Recipe):
    """Prune column by column, mending the columns that follow; with a grid, round too (arXiv 2301.00774)."""

    name = "sparsegpt"
    needs = "moments"
    needs_hessian_alone = True

    pattern: Pattern
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class RTN(Recipe):
    """Round each weight to the nearest grid point."""

    name = "rtn"

    grid: Grid


@dataclass(frozen=True, kw_only=True)
class GPTQ(Recipe):
    """Round column by column, mending the columns that follow (arXiv 2210.17323).

    `act_order` takes the columns with the largest inputs first. `static_groups` fits the grids of all groups
    beforehand; act-order needs that, since its groups do not come up one after the other, and switches it on.
    """

    name = "gptq"
    needs = "moments"
    needs_hessian_alone = True

    grid: Grid
    act_order: bool = False
    static_groups: bool = False

    def __post_init__(self) -> None:
        grouped = self.grid.group_size is not None
        if self.static_groups and not grouped:
            raise ConfigError("static groups without groups; give a group size too (as gptq@4b-g128-static)")
        object.__setattr__(self, "static_groups", grouped and (self.act_order or self.static_groups))

    def __str__(self) -> str:
        static = "-static" if self.static_groups and not self.act_order else ""
        return f"{super().__str__()}{'-act' if self.act_order else ''}{static}"


@dataclass(frozen=True, kw_only=True)
class Chain(Recipe):
    """Prune, then round what is left: `wanda@0.5+gptq@4b`. The zeros of the first step stay zero."""

    steps: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        # Other orders undo themselves: an update after rounding leaves the grid, a second pruning the level.
        if [(s.sparsity is not None, s.is_rounding) for s in self.steps] != [(True, False), (False, True)]:
            raise ConfigError(
                "a chain is one pruning step, then one rounding step (as wanda@0.5+gptq@4b),"
                f" not {' then '.join(map(str, self.steps)) or 'empty'}"
            )

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))

    @property
    def parts(self) -> tuple[Pattern | Grid, ...]:
        """The pattern and the grid of all steps."""
        return tuple(part for step in self.steps for part in step.parts)

    @property
    def method(self) -> str:
        """Names of the methods in order: `wanda+gptq`."""
        return "+".join(step.method for step in self.steps)

    @property
    def needs_calibration(self) -> bool:
        """Whether a step needs the layer's inputs."""
        return any(step.needs_calibration for step in self.steps)

    @property
    def needs_hessian(self) -> bool:
        """Whether a step needs their full second moments."""
        return any(step.needs_hessian for step in self.steps)

    @property
    def needs_squares(self) -> bool:
        """Whether a step needs their mean squares."""
        return any(step.needs_squares for step in self.steps)


def _parse_magnitude(level: str) -> Magnitude:
    return Magnitude(pattern=parse_pattern("magnitude", level, METHODS["magnitude"].examples))


def _parse_wanda(level: str) -> Wanda:
    return Wanda(pattern=parse_pattern("wanda", level, METHODS["wanda"].examples))


def _parse_sparsegpt(level: str) -> SparseGPT:
    refuse_two_patterns(level)
    share, plus, bits = level.partition("+")
    joint = parse_grid("sparsegpt", bits, METHODS["sparsegpt"].options)[0] if plus else None
    return SparseGPT(pattern=parse_pattern("sparsegpt", share, METHODS["sparsegpt"].examples), grid=joint)


def _parse_rtn(level: str) -> RTN:
    return RTN(grid=parse_grid("rtn", level, METHODS["rtn"].options)[0])


def _parse_gptq(level: str) -> GPTQ:
    grid, flags = parse_grid("gptq", level, METHODS["gptq"].options)
    return GPTQ(grid=grid, act_order="act" in flags, static_groups="static" in flags)


# What comes with this package; plug-ins add theirs in the same form.
METHODS: Mapping[str, Method] = {
    "dense": Method(
        summary="the model as it is",
        examples=("dense",),
        parse=lambda level: Dense(),
        kernel="llmkick.compression.weight:keep",
    ),
    "magnitude": Method(
        summary="zero the smallest weights",
        examples=("magnitude@0.5", "magnitude@2:4"),
        parse=_parse_magnitude,
        kernel="llmkick.compression.magnitude:compress",
    ),
    "wanda": Method(
        summary="zero the smallest products of weight and input norm (arXiv 2306.11695)",
        examples=("wanda@0.5", "wanda@2:4", "wanda@0.5+gptq@4b"),
        parse=_parse_wanda,
        kernel="llmkick.compression.wanda:compress",
    ),
    "sparsegpt": Method(
        summary="prune and mend the weights that stay, with or without rounding them (arXiv 2301.00774)",
        examples=("sparsegpt@0.5", "sparsegpt@4:8", "sparsegpt@0.5+4b", "sparsegpt@2:4+4b-g128"),
        options=("gN", "sym"),
        parse=_parse_sparsegpt,
        kernel="llmkick.compression.sparsegpt:compress",
    ),
    "rtn": Method(
        summary="round to the nearest grid point, the control that GPTQ must beat",
        examples=("rtn@8b", "rtn@4b-g128", "rtn@4b-sym"),
        options=("gN", "sym"),
        parse=_parse_rtn,
        kernel="llmkick.compression.rtn:compress",
    ),
    "gptq": Method(
        summary="round and mend the weights not yet rounded (arXiv 2210.17323)",
        examples=("gptq@4b", "gptq@3b-g128", "gptq@4b-g128-act", "gptq@4b-sym"),
        options=("gN", "sym", "act", "static"),
        parse=_parse_gptq,
        kernel="llmkick.compression.gptq:compress",
    ),
}


def method_named(name: str) -> Method:
    """A method of this package or of a plug-in. Raises ConfigError for an unknown name and for a broken plug-in."""
    if name in METHODS:
        return METHODS[name]
    plugins.refuse_clash(plugins.METHODS, name, METHODS)
    added = plugins.usable(plugins.METHODS, METHODS)
    if name not in added:
        raise ConfigError(f"unknown method {name!r}; choose from: {', '.join([*METHODS, *added])}")
    return plugin_method(added[name])


def all_methods() -> tuple[dict[str, Method], list[str]]:
    """Every method that works, by name, and what is wrong with the plug-ins that do not."""
    methods, problems = dict(METHODS), plugins.problems(plugins.METHODS, METHODS)
    for name, plugin in plugins.usable(plugins.METHODS, METHODS).items():
        try:
            methods[name] = plugin_method(plugin)
        except ConfigError as error:
            problems.append(str(error))
    return methods, problems


def plugin_origins(recipe: Recipe) -> dict[str, str]:
    """The steps of a recipe that are plug-ins, with the package and version that decide what they do."""
    steps = recipe.steps if isinstance(recipe, Chain) else (recipe,)
    origins = {step.method: method_named(step.method).origin for step in steps}
    return {name: origin for name, origin in origins.items() if origin}


def parse_recipe(text: str) -> Recipe:
    """`method@level[-option…]`, or two of them joined by `+`, as a typed recipe: see `METHODS`."""
    try:
        if not text.strip():
            raise ConfigError("the text is empty; write for example wanda@2:4")
        # A plus before the next `method@` joins two steps; any other belongs to a level: sparsegpt@0.5+4b.
        steps = [_parse_step(step) for step in re.split(r"\+(?=[^+@]*@)", text.strip())]
        return steps[0] if len(steps) == 1 else Chain(steps=tuple(steps))
    except ConfigError as error:
        raise ConfigError(f"recipe {text!r}: {error}") from None


def _parse_step(text: str) -> Recipe:
    """One `method@level[-option…]`."""
    name, _, level = text.partition("@")
    method = method_named(name)
    if name == Dense.name:
        if text != name:
            raise ConfigError(f"dense takes no level, but got {level!r}; write dense")
    elif not level:
        raise ConfigError(f"{name} needs a level; write for example {method.examples[0]}")
    return method.parsed(level)
