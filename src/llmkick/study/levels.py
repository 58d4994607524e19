"""Levels of compression: the level of one recipe, and the grid of levels of a method from mild to severe.

A grid is typed as `wanda`, `wanda@n:m` or `gptq@8b,4b,3b`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llmkick.compression.kernels.patterns import Pattern
from llmkick.compression.levels import parse_grid, parse_pattern
from llmkick.compression.recipe import NM, Chain, Dense, Grid, Recipe, Unstructured
from llmkick.compression.registry import METHODS, parse_recipe
from llmkick.errors import ConfigError

# Fine, since a bisection asks for one or two levels more when there are twice as many.
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

LevelKind = Literal["sparsity", "n:m", "bits", "combined", "other"]
_GRID_OPTIONS = ("gN", "sym", "act", "static")


@dataclass(frozen=True, kw_only=True)
class RecipeLevel:
    """The method of a recipe and the level at which it is applied.

    `level` is the text after the `@`. `severity` orders the levels of one kind, mild first. `sparsity` is the share of
    zeros of an unstructured level; None for every other kind.
    """

    recipe: str
    method: str
    kind: LevelKind
    level: str
    severity: tuple[float, ...]
    sparsity: float | None


def level_of(recipe: str) -> RecipeLevel:
    """The level of a recipe text; the label of another model, and a level that no parser reads, is of kind "other".

    The method need not be installed here: `a@0.5+4b` is read as a pattern and a grid.
    """
    steps = [step.partition("@") for step in re.split(r"\+(?=[^+@]*@)", recipe)]
    level = "+".join(text for _, _, text in steps)
    parts = _parts(recipe, level)
    kind: LevelKind = "other"
    if parts:
        kind = _part_kind(parts[0]) if len(parts) == 1 else "combined"
    numbers = tuple(number for part in parts for number in _part_severity(part))
    return RecipeLevel(
        recipe=recipe,
        method="+".join(name for name, _, _ in steps),
        kind=kind,
        level=level or recipe,
        severity=numbers,
        sparsity=numbers[0] if kind == "sparsity" else None,
    )


def _parts(recipe: str, level: str) -> tuple[Pattern | Grid, ...]:
    """The pattern and the grid of a recipe; empty where a part of the level cannot be read."""
    try:
        return parse_recipe(recipe).parts
    except ConfigError:
        pass  # the method is a plug-in that is not installed here, or the text is the label of another model
    try:
        return tuple(_parse_part(text) for text in level.split("+"))
    except ConfigError:
        return ()


def _parse_part(text: str) -> Pattern | Grid:
    try:
        return parse_pattern("", text, ())
    except ConfigError:
        return parse_grid("", text, _GRID_OPTIONS)[0]


@dataclass(frozen=True, kw_only=True)
class LevelGrid:
    """One method's recipes, mild to severe; `name` is what was typed."""

    name: str
    method: str
    kind: LevelKind  # sparsity, n:m, bits
    recipes: tuple[Recipe, ...]


def level_grid(text: str) -> LevelGrid:
    """`METHOD`, `METHOD@sparsity`, `METHOD@n:m`, `METHOD@bits`, or `METHOD@LEVEL,LEVEL,…` of one kind.

    Raises ConfigError for an unknown method or level, a level twice, fewer than two, or kinds that do not compare.
    """
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
    kinds_found = {_kind(recipe) for recipe in recipes}
    if len(recipes) < 2 or len(set(map(str, recipes))) < len(recipes):
        raise ConfigError(f"{text!r}: give two levels or more, each once; or a kind: {', '.join(GRIDS)}")
    if len(kinds_found) > 1 or None in kinds_found:
        raise ConfigError(f"{text!r}: levels of different kinds have no order; give sparsities, or N:M, or bits")
    return LevelGrid(
        name=text.strip(),
        method=method,
        kind=_part_kind(recipes[0].parts[0]),
        recipes=tuple(sorted(recipes, key=severity)),
    )


def _kind(recipe: Recipe) -> LevelKind | None:
    if isinstance(recipe, Chain | Dense) or len(recipe.parts) != 1:
        return None
    return _part_kind(recipe.parts[0])


def _part_kind(part: Pattern | Grid) -> LevelKind:
    return "bits" if isinstance(part, Grid) else "n:m" if isinstance(part, NM) else "sparsity"


def severity(recipe: Recipe) -> tuple[float, ...]:
    """Orders the levels of one kind, mild first."""
    return _part_severity(recipe.parts[0])


def _part_severity(part: Pattern | Grid) -> tuple[float, ...]:
    if isinstance(part, Unstructured):
        return (part.sparsity,)
    if isinstance(part, NM):
        return part.sparsity, -part.group  # of two patterns as sparse, the wider one leaves more freedom
    # A smaller group is milder; no group at all is the most severe. An infinite group size has no JSON form.
    return -part.bits, -1 / part.group_size if part.group_size else 0.0


def level_text(recipe: Recipe) -> str:
    """The level as a person reads it: what follows the `@`."""
    return str(recipe).partition("@")[2]
