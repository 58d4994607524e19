"""Recipes: what a person types, `wanda@2:4`, and its typed, frozen form; each converts into the other."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from llmkick.errors import ConfigError

BITS = (2, 3, 4, 8)
MAX_GROUP = 64  # the M of N:M; hardware knows 4 and 8, studies go a little further


@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Zeros anywhere; `sparsity` is their share of the weights, in (0, 1)."""

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity {self.sparsity} is not the share of zeros, between 0 and 1 (as 0.5)")

    def __str__(self) -> str:
        return f"{Decimal(repr(float(self.sparsity))):f}"  # never 1e-05, whose minus would open an option


@dataclass(frozen=True, kw_only=True)
class NM:
    """`kept` of every `group` consecutive inputs stay, the others are zeroed: 2:4 is kept=2, group=4."""

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept < self.group <= MAX_GROUP:
            raise ConfigError(
                f"pattern {self} does not keep N of every M weights with 1 ≤ N < M ≤ {MAX_GROUP} (as 2:4 or 4:8)"
            )

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    @property
    def sparsity(self) -> float:
        """Share of weights that become zero."""
        return 1 - self.kept / self.group


Pattern = Unstructured | NM


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An integer grid: 2^bits levels per output row, or per `group_size` inputs of each row.

    `symmetric` centres it on 0; otherwise it spans the smallest to the largest weight (and 0). 16 bits
    change almost nothing and serve as a control; no recipe text asks for them.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (*BITS, 16):
            raise ConfigError(f"{self.bits} bits are not supported; choose from: {', '.join(map(str, BITS))}")
        if self.group_size is not None and not (isinstance(self.group_size, int) and self.group_size >= 2):
            raise ConfigError(f"group size {self.group_size} is not a whole number ≥ 2 (usual is 128)")

    def __str__(self) -> str:
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"{self.bits}b{group}{'-sym' if self.symmetric else ''}"


class _Facts:
    """What the rest of the program asks of a recipe, derived from its pattern and its grid."""

    def __str__(self) -> str:
        return f"{self.method}@{'+'.join(map(str, self.parts))}"

    @property
    def parts(self) -> tuple[Pattern | Grid, ...]:
        """The pattern and the grid, as far as there are any."""
        return tuple(part for part in vars(self).values() if isinstance(part, Unstructured | NM | Grid))

    @property
    def method(self) -> str:
        """Name of the method as typed before the `@`; those of a chain joined by `+`."""
        return type(self).__name__.lower()

    @property
    def needs_calibration(self) -> bool:
        """Whether the layer's inputs on calibration text are needed."""
        return self.needs_hessian or "wanda" in self.method.split("+")

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs' full second moments are needed, not only their mean squares."""
        return not {"sparsegpt", "gptq"}.isdisjoint(self.method.split("+"))

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
class Dense(_Facts):
    """Changes nothing, so that a study can list the dense model beside the compressed ones."""

    def __str__(self) -> str:
        return self.method


@dataclass(frozen=True, kw_only=True)
class Magnitude(_Facts):
    """Zero the smallest weights."""

    pattern: Pattern


@dataclass(frozen=True, kw_only=True)
class Wanda(_Facts):
    """Zero the smallest products of weight and input norm (arXiv 2306.11695)."""

    pattern: Pattern


@dataclass(frozen=True, kw_only=True)
class SparseGPT(_Facts):
    """Prune column by column, mending the columns that follow; with a grid, round too (arXiv 2301.00774)."""

    pattern: Pattern
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class RTN(_Facts):
    """Round each weight to the nearest grid point."""

    grid: Grid


@dataclass(frozen=True, kw_only=True)
class GPTQ(_Facts):
    """Round column by column, mending the columns that follow (arXiv 2210.17323).

    `act_order` takes the columns with the largest inputs first. `static_groups` fits the grids of all groups
    beforehand; act-order needs that, since its groups do not come up one after the other, and switches it on.
    """

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


Step = Dense | Magnitude | Wanda | SparseGPT | RTN | GPTQ


@dataclass(frozen=True, kw_only=True)
class Chain(_Facts):
    """Prune, then round what is left: `wanda@0.5+gptq@4b`. The zeros of the first step stay zero."""

    steps: tuple[Step, ...]

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


Recipe = Step | Chain


class MethodInfo(NamedTuple):
    """A method as `kick methods` shows it."""

    summary: str
    examples: tuple[str, ...]
    options: tuple[str, ...] = ()


METHODS: Mapping[str, MethodInfo] = {
    "dense": MethodInfo("the model as it is", ("dense",)),
    "magnitude": MethodInfo("zero the smallest weights", ("magnitude@0.5", "magnitude@2:4")),
    "wanda": MethodInfo(
        "zero the smallest products of weight and input norm (arXiv 2306.11695)",
        ("wanda@0.5", "wanda@2:4", "wanda@0.5+gptq@4b"),
    ),
    "sparsegpt": MethodInfo(
        "prune and mend the weights that stay, with or without rounding them (arXiv 2301.00774)",
        ("sparsegpt@0.5", "sparsegpt@4:8", "sparsegpt@0.5+4b", "sparsegpt@2:4+4b-g128"),
        ("gN", "sym"),
    ),
    "rtn": MethodInfo(
        "round to the nearest grid point, the control that GPTQ must beat",
        ("rtn@8b", "rtn@4b-g128", "rtn@4b-sym"),
        ("gN", "sym"),
    ),
    "gptq": MethodInfo(
        "round and mend the weights not yet rounded (arXiv 2210.17323)",
        ("gptq@4b", "gptq@3b-g128", "gptq@4b-g128-act", "gptq@4b-sym"),
        ("gN", "sym", "act", "static"),
    ),
}


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


def _parse_step(text: str) -> Step:
    """One `method@level[-option…]`."""
    method, _, level = text.partition("@")
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; choose from: {', '.join(METHODS)}")
    if method == "dense":
        if text != method:
            raise ConfigError(f"dense takes no level, but got {level!r}; write dense")
        return Dense()
    if not level:
        raise ConfigError(f"{method} needs a level; write for example {METHODS[method].examples[0]}")
    if method == "rtn":
        return RTN(grid=_parse_grid(method, level)[0])
    if method == "gptq":
        grid, flags = _parse_grid(method, level)
        return GPTQ(grid=grid, act_order="act" in flags, static_groups="static" in flags)
    if re.search(r":.*(^|[-+@])0?\.[0-9]|(^|[-+@])0?\.[0-9].*:", level):
        raise ConfigError(f"{level!r} gives both a ratio and an N:M pattern, which fixes its own; choose one")
    if method == "sparsegpt":
        share, plus, bits = level.partition("+")
        joint = _parse_grid(method, bits)[0] if plus else None
        return SparseGPT(pattern=_parse_pattern(method, share), grid=joint)
    return (Wanda if method == "wanda" else Magnitude)(pattern=_parse_pattern(method, level))


def _parse_pattern(method: str, text: str) -> Pattern:
    """`0.5` or `2:4`."""
    if re.fullmatch(r"-?[0-9]*\.?[0-9]+", text):
        return Unstructured(sparsity=float(text))
    if re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", text):
        kept, group = map(int, text.split(":"))
        return NM(kept=kept, group=group)
    if "-" in text[1:]:
        option = text[1:].split("-")[1]
        raise ConfigError(f"unknown option {option!r} of {method}; a sparsity takes none, only a grid does")
    examples = ", ".join(METHODS[method].examples)
    raise ConfigError(f"{text!r} is neither a share of zeros nor N:M alone; {method} is written as {examples}")


def _parse_grid(method: str, text: str) -> tuple[Grid, set[str]]:
    """`4b-g128-sym` and the method's own flags → the grid, the names of all options given."""
    level, *words = text.split("-")
    if level not in (levels := [f"{bits}b" for bits in BITS]):
        raise ConfigError(f"{level!r} is not a grid of {method}; choose from: {', '.join(levels)}")
    seen: dict[str, str] = {}
    for word in words:
        option = "gN" if re.fullmatch(r"g[^a-z]*", word) else word
        if option not in METHODS[method].options:
            choices = ", ".join(METHODS[method].options)
            raise ConfigError(f"unknown option {word!r} of {method}; choose from: {choices}")
        if option in seen:
            raise ConfigError(f"option {word!r} comes after {seen[option]!r}; give it once")
        seen[option] = word
    group = seen.get("gN", "g0")[1:]
    if not re.fullmatch(r"[0-9]{1,9}", group):
        raise ConfigError(f"group size {group!r} is not a whole number of inputs (as in -g128)")
    group_size = int(group) if "gN" in seen else None
    return Grid(bits=int(level[:-1]), group_size=group_size, symmetric="sym" in seen), set(seen)
