"""The least that a walk over the blocks must compute and move; pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Linears that are given one input: its statistic is needed once.
SHARED = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)
FLOAT32 = 4


@dataclass(frozen=True)
class Part:
    """One part of the work: operations (a multiply-add counts two), bytes moved, and the dtype it is in."""

    name: str
    operations: float
    bytes: float
    dtype: str

    def seconds(self, flops: Mapping[str, float], bandwidth: float) -> float:
        """Whichever of arithmetic and memory takes longer at the machine's measured speed."""
        return max(self.operations / flops[self.dtype], self.bytes / bandwidth)


def floor(
    method: str, shapes: Mapping[str, Sequence[int]], blocks: int, *, sequences: int, length: int, dtype: str
) -> list[Part]:
    """Parts of the work on `blocks` blocks whose linears have `shapes` {name: (out, in)}, the last one run last.

    Every block runs twice, but the first time without its last linear, whose output nobody needs yet, and the
    last block only once. H is symmetric: half of the product. Cholesky c³/3; a sweep
    over the columns updates on average half of the others: out·in².
    """
    tokens, size = sequences * length, 2 if dtype in {"bfloat16", "float16"} else FLOAT32
    weights = {name: out * columns for name, (out, columns) in shapes.items()}
    block, last = sum(weights.values()), list(weights.values())[-1]
    passes = 2 * blocks - 1
    products = 2 * tokens * (2 * blocks * block - blocks * last - block)
    attention = 2 * length * tokens * shapes["q_proj"][0] * passes  # causal: half of each of two products
    width = shapes["q_proj"][1]
    moved = size * passes * (block + 2 * tokens * width)
    inputs = [shapes[names[0]][1] for names in SHARED]
    parts = [Part("forwards", products + attention, moved, dtype)]
    read = size * tokens * sum(inputs) * blocks
    if method == "wanda":
        parts.append(Part("Σ x²", 2 * tokens * sum(inputs) * blocks, read, "float32"))
        parts.append(Part("masks", 2 * block * blocks, 2 * size * block * blocks, "float32"))
        return parts
    squares = sum(c * c for c in inputs)
    parts.append(Part("H", tokens * squares * blocks, read + FLOAT32 * squares * blocks, "float32"))
    factors = sum(c**3 for c in inputs) / 3
    parts.append(Part("factors", factors * blocks, 2 * FLOAT32 * squares * blocks, "float32"))
    sweeps = sum(out * c * c for out, c in shapes.values())
    parts.append(Part("columns", sweeps * blocks, 2 * FLOAT32 * block * blocks, "float32"))
    return parts
