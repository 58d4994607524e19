"""The levels of a method from mild to severe: what a person types, `wanda`, `wanda@n:m`, `gptq@8b,4b,3b`, → recipes."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class LevelGrid:
    """One method's recipes, mild to severe; `name` is what was typed."""

    name: str
    method: str
    kind: str  # sparsity, n:m, bits
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
        kind=str(kinds_found.pop()),
        recipes=tuple(sorted(recipes, key=severity)),
    )


def _kind(recipe: Recipe) -> str | None:
    if isinstance(recipe, Chain | Dense) or len(recipe.parts) != 1:
        return None
    part = recipe.parts[0]
    return "bits" if isinstance(part, Grid) else "n:m" if isinstance(part, NM) else "sparsity"


def severity(recipe: Recipe) -> tuple[float, float]:
    """Orders the levels of one kind; of two N:M patterns as sparse, the wider one leaves more freedom."""
    part = recipe.parts[0]
    if isinstance(part, Unstructured):
        return part.sparsity, 0.0
    if isinstance(part, NM):
        return part.sparsity, -part.group
    return -part.bits, part.group_size or float("inf")


def level_text(recipe: Recipe) -> str:
    """The level as a person reads it: what follows the `@`."""
    return str(recipe).partition("@")[2]
