"""Levels of compression: the level of one recipe, and the grid of levels of a method from mild to severe.

A user writes a grid as `wanda`, `wanda@n:m` or `gptq@8b,4b,3b`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmkick.compression.levels import Level, LevelKind, level_of, parse_grid, parse_pattern
from llmkick.compression.recipe import RTN, Grid, Magnitude, Pattern, Recipe, Recovered, SparseGPT
from llmkick.compression.recoveries import recovery_of, split_recovery
from llmkick.compression.registry import METHODS, parse_recipe
from llmkick.errors import ConfigError

# The steps are fine because a bisection needs only one or two more levels when the grid is twice as long.
SPARSITIES = tuple(f"{thousandth / 1000:g}" for thousandth in range(25, 951, 25))
PATTERNS = ("15:16", "7:8", "13:16", "3:4", "11:16", "5:8", "9:16", "2:4", "7:16", "3:8", "1:4", "1:8")
BITS = (
    "8b",
    "4b-g32",
    "4b-g64",
    "4b-g128",
    "4b",
    "3b-g32",
    "3b-g64",
    "3b-g128",
    "3b",
    "2b-g32",
    "2b-g64",
    "2b-g128",
    "2b",
)
GRIDS = {"sparsity": SPARSITIES, "n:m": PATTERNS, "bits": BITS}

_GRID_OPTIONS = ("gN", "sym", "act", "static")


def level_of_text(text: str) -> Level:
    """Return the level of a recipe text; the label of an external model or an unknown level has the kind "other".

    The method need not be installed: the level of `a@0.5+4b` is a pattern and a grid for every method `a`. A level of a
    calibration axis counts as a method of its own: `wanda@0.5 [sequences=8]` → method `wanda [sequences=8]`, label 0.5.
    """
    of_axis = re.fullmatch(r"([^ ]+@[^ ]+)( \[[^\[\]]+\])", text)
    if of_axis is not None:
        level = level_of_text(of_axis[1])
        return replace(level, recipe=text, method=level.method + of_axis[2])
    recovered = recovery_of(text)
    if recovered is not None:
        level = level_of_text(recovered.base)
        method = f"{level.method}+{recovered.recovery}"
        return replace(level, recipe=text, method=method, recovery=recovered.recovery)
    steps = [step.partition("@") for step in re.split(r"\+(?=[^+@]*@)", text)]
    label = "+".join(level for _, _, level in steps)
    try:
        level = level_of(parse_recipe(text))
    except ConfigError:
        level = _level_of_parts(label)
    return replace(level, recipe=text, method="+".join(method for method, _, _ in steps), label=label or text)


def _level_of_parts(label: str) -> Level:
    """Return the level of a built-in method with the same pattern and grid."""
    try:
        parts = [_parse_part(part) for part in label.split("+")]
    except ConfigError:
        parts = []
    match parts:
        case [Grid() as grid]:
            return level_of(RTN(grid=grid))
        case [pattern] if not isinstance(pattern, Grid):
            return level_of(Magnitude(pattern=pattern))
        case [pattern, Grid() as grid] if not isinstance(pattern, Grid):
            return level_of(SparseGPT(pattern=pattern, grid=grid))
        case _:
            return Level(recipe="", method="", kind="other", label=label, severity=())


def _parse_part(text: str) -> Pattern | Grid:
    try:
        return parse_pattern("", text, ())
    except ConfigError:
        return parse_grid("", text, _GRID_OPTIONS)[0]


@dataclass(frozen=True, kw_only=True)
class LevelGrid:
    """The recipes of one method, from mild to severe; `name` is the text that the user wrote."""

    name: str
    method: str
    kind: LevelKind  # sparsity, n:m, bits
    recipes: tuple[Recipe, ...]


def level_grid(text: str) -> LevelGrid:
    """Parse `METHOD`, `METHOD@sparsity`, `METHOD@n:m`, `METHOD@bits`, or `METHOD@LEVEL,LEVEL,…` of one kind.

    A recovery at the end, as in `wanda@n:m+lora`, belongs to every level.
    Raises ConfigError for an unknown method or level, a repeated level, fewer than two levels, or levels of kinds
    without a common order.
    """
    compression, recovery = split_recovery(text.strip())
    if recovery is not None:
        grid = level_grid(compression)
        recovered = tuple(Recovered(base=recipe, recovery=recovery) for recipe in grid.recipes)
        return replace(grid, name=text.strip(), method=f"{grid.method}+{recovery}", recipes=recovered)
    method, _, levels = text.strip().partition("@")
    if method == "dense" or method not in METHODS:
        choices = ", ".join(name for name in METHODS if name != "dense")
        raise ConfigError(f"unknown method {method!r} in {text!r}; choose from: {choices}")
    rounds = method in ("rtn", "gptq")
    if not levels:
        levels = "bits" if rounds else "sparsity"
    named = GRIDS.get(levels.lower())
    if named is not None and (levels.lower() == "bits") != rounds:
        kinds = "bits" if rounds else "sparsity, n:m"
        raise ConfigError(f"{method} has no levels of kind {levels!r}; choose from: {kinds}, or list levels")
    texts = named or [level.strip() for level in levels.split(",")]
    recipes = [parse_recipe(f"{method}@{level}") for level in texts]
    kinds_given = {level_of(recipe).kind for recipe in recipes}
    if len(recipes) < 2 or len(set(map(str, recipes))) < len(recipes):
        raise ConfigError(f"{text!r}: give two levels or more, each once; or a kind: {', '.join(GRIDS)}")
    if len(kinds_given) > 1 or kinds_given & {"combined", "other"}:
        raise ConfigError(f"{text!r}: levels of different kinds have no order; give sparsities, or N:M, or bits")
    return LevelGrid(
        name=text.strip(),
        method=method,
        kind=kinds_given.pop(),
        recipes=tuple(sorted(recipes, key=severity)),
    )


def severity(recipe: Recipe) -> tuple[float, ...]:
    """Return the sort key for levels of one kind, from mild to severe."""
    return level_of(recipe).severity


def level_text(recipe: Recipe) -> str:
    """Return the level as text: the part of the recipe after the `@`, without a recovery."""
    base = recipe.base if isinstance(recipe, Recovered) else recipe
    return str(base).partition("@")[2]
