"""The level of a recipe: how much it takes away. As text (`0.5`, `2:4`, `4b-g128`), and as typed values that compare.

`level_of` is the only place that says what method, kind and severity a recipe has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llmkick.compression.kernels.patterns import BITS, NM, Grid, Pattern, Unstructured
from llmkick.compression.recipe import Recipe, Recovered, steps_of
from llmkick.errors import ConfigError

LevelKind = Literal["sparsity", "n:m", "bits", "combined", "other"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """The level of a recipe, for tables and figures and for ordering the recipes of a method.

    recipe: the recipe as text. method: its name before the `@`; `wanda+gptq` for a chain. kind: what its levels are
    measured in; "combined" for a recipe that prunes and rounds, "other" for one without a pattern and a grid (`dense`).
    label: the recipe without the names of its methods, `0.5`, `2:4+4b-g128`. severity: orders the levels of one kind,
    mild first; all numbers are finite. sparsity: the share of zeros of an unstructured recipe, else None. recovery: of
    a recovered recipe, whose method is `wanda+lora` and whose other values are those of its base; else empty.
    """

    recipe: str
    method: str
    kind: LevelKind
    label: str
    severity: tuple[float, ...]
    sparsity: float | None = None
    recovery: str = ""


def level_of(recipe: Recipe) -> Level:
    """The level of a recipe: `gptq@4b-g128` → method gptq, kind bits, label 4b-g128."""
    if isinstance(recipe, Recovered):
        base = level_of(recipe.base)
        return replace(base, recipe=str(recipe), method=recipe.method, recovery=str(recipe.recovery))
    steps = steps_of(recipe)
    text, parts = str(recipe), recipe.parts
    kind: LevelKind = "combined"
    if not all(step.parts for step in steps):
        kind = "other"
    elif len(parts) == 1:
        kind = _kind(parts[0])
    return Level(
        recipe=text,
        method=recipe.method,
        kind=kind,
        label="+".join(filter(None, (str(step).partition("@")[2] for step in steps))) or text,
        severity=tuple(number for part in parts for number in _severity(part)),
        sparsity=recipe.sparsity if kind == "sparsity" else None,
    )


def _kind(part: Pattern | Grid) -> LevelKind:
    if isinstance(part, Grid):
        return "bits"
    return "n:m" if isinstance(part, NM) else "sparsity"


def _severity(part: Pattern | Grid) -> tuple[float, ...]:
    """Numbers that grow with the severity; only those of parts of one kind can be compared."""
    if isinstance(part, Unstructured):
        return (part.sparsity,)
    if isinstance(part, NM):
        return part.sparsity, -part.group  # of two equally sparse patterns the wider leaves more freedom
    return -part.bits, -1 / part.group_size if part.group_size else 0.0


def parse_pattern(method: str, text: str, examples: Sequence[str]) -> Pattern:
    """Parse `0.5` or `2:4`; method and examples appear in error messages. Raises ConfigError."""
    refuse_two_patterns(text)
    if re.fullmatch(r"-?[0-9]*\.?[0-9]+", text):
        return Unstructured(sparsity=float(text))
    if re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", text):
        kept, group = map(int, text.split(":"))
        return NM(kept=kept, group=group)
    if "-" in text[1:]:
        option = text[1:].split("-")[1]
        raise ConfigError(f"unknown option {option!r} of {method}; a sparsity takes none, only a grid does")
    written = ", ".join(examples)
    raise ConfigError(f"{text!r} is neither a share of zeros nor N:M alone; {method} is written as {written}")


def refuse_two_patterns(level: str) -> None:
    """Raise ConfigError for a level with both a ratio and an N:M pattern."""
    if re.search(r":.*(^|[-+@])0?\.[0-9]|(^|[-+@])0?\.[0-9].*:", level):
        raise ConfigError(f"{level!r} gives both a ratio and an N:M pattern, which fixes its own; choose one")


def parse_grid(method: str, text: str, options: Collection[str] = ("gN", "sym")) -> tuple[Grid, set[str]]:
    """Parse `4b-g128-sym`: the grid, and the names of all given options, those of the method among them.

    options: the names that the method accepts. Raises ConfigError for another level or option, or one given twice.
    """
    level, *words = text.split("-")
    if level not in (levels := [f"{bits}b" for bits in BITS]):
        raise ConfigError(f"{level!r} is not a grid of {method}; choose from: {', '.join(levels)}")
    seen: dict[str, str] = {}
    for word in words:
        option = "gN" if re.fullmatch(r"g[^a-z]*", word) else word
        if option not in options:
            raise ConfigError(f"unknown option {word!r} of {method}; choose from: {', '.join(options)}")
        if option in seen:
            raise ConfigError(f"option {word!r} comes after {seen[option]!r}; give it once")
        seen[option] = word
    group = seen.get("gN", "g0")[1:]
    if not re.fullmatch(r"[0-9]{1,9}", group):
        raise ConfigError(f"group size {group!r} is not a whole number of inputs (as in -g128)")
    group_size = int(group) if "gN" in seen else None
    return Grid(bits=int(level[:-1]), group_size=group_size, symmetric="sym" in seen), set(seen)
