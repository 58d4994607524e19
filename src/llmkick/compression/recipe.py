"""Recipes: the typed, frozen form of a text such as `wanda@2:4`, which `registry.parse_recipe` reads."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from llmkick.compression.kernels.patterns import NM, Grid, Pattern, Unstructured
from llmkick.compression.recoveries import LoRA, Recovery, Training
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
    "Recovered",
    "SparseGPT",
    "Unstructured",
    "Wanda",
]


class Recipe:
    """What is done to every linear layer: the base class of all recipes.

    The recipe class of a method is a frozen dataclass with the method's `name`. `needs` says which statistics of a
    layer's inputs the kernel uses: "nothing", "squares" (the mean square of each input) or "moments" (also Σ x xᵀ).
    Fields that hold a pattern or a grid are recognised by their type.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Literal["nothing", "squares", "moments"]] = "nothing"
    needs_hessian_alone: ClassVar[bool] = False  # with needs = "moments": the kernel never uses the mean squares

    def __str__(self) -> str:
        return f"{self.method}@{'+'.join(map(str, self.parts))}"

    @property
    def parts(self) -> tuple[Pattern | Grid, ...]:
        """The pattern and the grid, those that the recipe has."""
        return tuple(part for part in vars(self).values() if isinstance(part, Unstructured | NM | Grid))

    @property
    def method(self) -> str:
        """Name of the method, the text before the `@`; for a chain the names joined by `+`."""
        return self.name

    @property
    def needs_calibration(self) -> bool:
        """Whether statistics of the layer's inputs on calibration text are needed."""
        return self.needs != "nothing"

    @property
    def needs_hessian(self) -> bool:
        """Whether the second moments Σ x xᵀ of the inputs are needed."""
        return self.needs == "moments"

    @property
    def needs_squares(self) -> bool:
        """Whether the mean squares of the inputs are needed, apart from the diagonal of the second moments."""
        return self.needs_calibration and not self.needs_hessian_alone

    @property
    def is_rounding(self) -> bool:
        """Whether the compressed weights lie on an integer grid."""
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
        """The number that must divide a layer's input width: M of N:M, otherwise 1."""
        return math.lcm(*(part.group for part in self.parts if isinstance(part, NM)))

    @property
    def group_size(self) -> int | None:
        """Number of inputs that share an integer grid; None without groups. The last group of a row may be smaller."""
        return next((part.group_size for part in self.parts if isinstance(part, Grid)), None)


@dataclass(frozen=True, kw_only=True)
class Dense(Recipe):
    """Change nothing: lets a study list the dense model beside the compressed ones."""

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
    """Prune column by column with compensation in later columns; with a grid, round too (arXiv 2301.00774)."""

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
    """Round column by column with compensation in later columns (arXiv 2210.17323).

    `act_order` rounds the columns with the largest inputs first. `static_groups` fits the grids of all groups before
    any rounding; act-order switches it on, because then the columns of a group do not follow one another.
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
    """Prune, then round the remaining weights: `wanda@0.5+gptq@4b`. The zeros of the first step stay zero."""

    steps: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        # Other orders do not work: an update after rounding leaves the grid, a second pruning changes the sparsity.
        recovered = any(isinstance(step, Recovered) for step in self.steps)
        if recovered or [(s.sparsity is not None, s.is_rounding) for s in self.steps] != [(True, False), (False, True)]:
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
        """Whether a step needs the second moments of the inputs."""
        return any(step.needs_hessian for step in self.steps)

    @property
    def needs_squares(self) -> bool:
        """Whether a step needs the mean squares of the inputs."""
        return any(step.needs_squares for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Recovered(Recipe):
    """A compression, then a recovery of what it lost: `wanda@2:4+lora`. Pattern and grid are those of the base."""

    base: Recipe
    recovery: Recovery

    def __post_init__(self) -> None:
        if isinstance(self.base, Dense):
            raise ConfigError(f"dense has lost nothing that {self.recovery} could recover; write a compression first")
        if isinstance(self.base, Recovered):
            raise ConfigError(f"{self.base.recovery} and {self.recovery} are two recoveries; a recipe has one")

    def __str__(self) -> str:
        return f"{self.base}+{self.recovery}"

    @property
    def parts(self) -> tuple[Pattern | Grid, ...]:
        """The pattern and the grid of the base."""
        return self.base.parts

    @property
    def method(self) -> str:
        """Names of the base's methods and the recovery: `wanda+lora`."""
        return f"{self.base.method}+{self.recovery}"

    @property
    def needs_calibration(self) -> bool:
        """Always: every recovery reads calibration text."""
        return True

    @property
    def needs_hessian(self) -> bool:
        """Whether the base or the recovery needs the second moments of the inputs."""
        return self.base.needs_hessian or self.recovery.by_layer

    @property
    def needs_squares(self) -> bool:
        """Whether the base needs the mean squares of the inputs."""
        return self.base.needs_squares


def is_trained(recipe: Recipe) -> bool:
    """Whether the whole network is trained after its compression."""
    return isinstance(recipe, Recovered) and not recipe.recovery.by_layer


def with_training(recipe: Recipe, training: Training) -> Recipe:
    """The recipe with other settings of its training; a recipe without one is returned as it is."""
    if isinstance(recipe, Recovered) and isinstance(recipe.recovery, LoRA):
        return replace(recipe, recovery=replace(recipe.recovery, training=training))
    return recipe


def steps_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """The compression steps of a recipe, without a recovery."""
    if isinstance(recipe, Recovered):
        return steps_of(recipe.base)
    return recipe.steps if isinstance(recipe, Chain) else (recipe,)
