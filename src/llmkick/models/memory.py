"""Memory of devices: how much is free, and which errors say that it ran out."""

from __future__ import annotations

import gc
from collections.abc import Callable

import psutil
import torch

# Words of allocators that fail with an error of no kind of its own.
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)


def free_bytes(*devices: torch.device) -> int | None:
    """Bytes that could be allocated now, in equal parts on all devices; None where a device does not tell."""
    free = [_free_on(device) for device in devices]
    return None if None in free else len(free) * min(size for size in free if size is not None)


def _free_on(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved but not allocated is free for its next tensors.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation; CPU allocators say so only in the text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


def attempt(work: Callable[[], None]) -> str | None:
    """Do `work`; returns None, or the allocator's message when memory ran out. Other errors are raised."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    else:
        return None
    # Only after the except block are the frames of the failed work, and their tensors, released.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason
