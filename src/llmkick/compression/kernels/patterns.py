"""The sparsity patterns and integer grids of recipes and kernels; without torch, so that the command line is fast."""

from dataclasses import dataclass
from decimal import Decimal

from llmkick.errors import ConfigError

BITS = (2, 3, 4, 8)
MAX_GROUP = 64  # the M of N:M; hardware supports 4 and 8, studies use somewhat larger groups


@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Zeros anywhere; `sparsity` is their share of the weights, in (0, 1)."""

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity {self.sparsity} is not the share of zeros, between 0 and 1 (as 0.5)")

    def __str__(self) -> str:
        return f"{Decimal(repr(float(self.sparsity))):f}"  # never 1e-05, whose minus would begin an option


@dataclass(frozen=True, kw_only=True)
class NM:
    """Of every `group` consecutive inputs `kept` weights stay, the others are zeroed: 2:4 is kept=2, group=4."""

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

    A `symmetric` grid is centred on 0; otherwise it spans the smallest to the largest weight and 0. 16 bits change
    almost nothing and serve as a control in tests; recipe texts cannot ask for them.
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
