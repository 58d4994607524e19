"""Levels: how much of a weight a recipe takes away, as a person types it (`0.5`, `2:4`, `4b-g128`) and as a type."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

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


def parse_pattern(method: str, text: str, examples: Sequence[str]) -> Pattern:
    """`0.5` or `2:4`; method and examples are for error messages. Raises ConfigError."""
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
    """Raise ConfigError for a level that holds both a ratio and an N:M pattern."""
    if re.search(r":.*(^|[-+@])0?\.[0-9]|(^|[-+@])0?\.[0-9].*:", level):
        raise ConfigError(f"{level!r} gives both a ratio and an N:M pattern, which fixes its own; choose one")


def parse_grid(method: str, text: str, options: Collection[str] = ("gN", "sym")) -> tuple[Grid, set[str]]:
    """`4b-g128-sym` and the method's own flags → the grid, the names of all options given. Raises ConfigError."""
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
