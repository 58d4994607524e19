"""Recipes: the typed, frozen form of what a person types, `wanda@2:4`. `registry.parse_recipe` reads the text."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from llmkick.compression.kernels.patterns import NM, Grid, Pattern, Unstructured
from llmkick.errors import ConfigError

__all__ = [
    "GPTQ",
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
