"""What this machine can do at best, so that the floor is one of this machine: products and copies a second."""

import torch
from common import answer, read_job, timed
from torch.nn.functional import linear

REPEATS = 5
SIZE = 2048
COPY = 64 << 20  # floats, far beyond any cache


def flops(dtype: torch.dtype) -> float:
    """Multiply-adds count two. The best of a square product and of one with the shape of the model's."""
    best = 0.0
    for rows, inner, columns in ((SIZE, SIZE, SIZE), (8192, 576, 1536), (8192, 1536, 576)):
        inputs, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        linear(inputs, weight)
        fastest = min(timed(lambda x=inputs, w=weight: linear(x, w))[0] for _ in range(REPEATS))
        best = max(best, 2 * rows * inner * columns / fastest)
    return best


def bandwidth() -> float:
    """Bytes a second, read and written, of a copy."""
    source, target = torch.ones(COPY), torch.empty(COPY)
    target.copy_(source)
    return 8 * COPY / min(timed(lambda: target.copy_(source))[0] for _ in range(REPEATS))


def main() -> None:
    job = read_job()
    answer(
        job,
        flops={name: flops(getattr(torch, name)) for name in {"float32", job["dtype"]}},
        bandwidth=bandwidth(),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
