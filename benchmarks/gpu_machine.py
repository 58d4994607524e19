"""What a device can do at best, measured: products of each precision, and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device, its operations a second (a multiply-add counts two) by precision, and its bytes a second."""

    device: torch.device
    flops: dict[str, float]
    bandwidth: float

    @classmethod
    def measured(cls, device: torch.device, *, size: int) -> Machine:
        """The best of some products of square matrices, and of some copies."""
        flops = {}
        for dtype in (torch.bfloat16, torch.float32):
            left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            best = min(timed(lambda a=left, b=right: a @ b, device) for _ in range(REPEATS))  # type: ignore[misc]
            flops[str(dtype).removeprefix("torch.")] = 2 * size**3 / best
        source = torch.ones(size, size, 4, device=device)
        target = torch.empty_like(source)
        copied = min(timed(lambda: target.copy_(source), device) for _ in range(REPEATS))
        return cls(device=device, flops=flops, bandwidth=2 * source.numel() * source.element_size() / copied)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, until the device is done."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
