"""Control over freed CPU memory that the C library keeps. It has an effect only with glibc."""

from __future__ import annotations

import contextlib
import ctypes
import math
from typing import Any

# Constants of malloc.h. Freed blocks above MMAP_LIMIT, the largest value that glibc takes, go back to the system.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_LIMIT = 32 * 2**20
KEPT = 256 * 2**20


def keep_freed_memory() -> bool:
    """Reuse the memory of activations instead of requesting new pages for each; returns whether glibc accepted this.

    It holds for the whole process, keeps at most KEPT bytes, and saves most page faults of a compression.
    """
    library = _c_library()
    if library is None or not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MMAP_LIMIT) and library.mallopt(M_TRIM_THRESHOLD, KEPT))


def give_back_freed_memory(*, above: int = 0) -> bool:
    """Return freed memory to the system: glibc keeps pieces otherwise, which add up over a model.

    above: bytes; less freed memory than this is left to be used again. Returns whether any memory was released.
    """
    library = _c_library()
    if library is None or not hasattr(library, "malloc_trim"):
        return False
    if above and _freed_bytes(library) <= above:
        return False
    return bool(library.malloc_trim(0))


class _MallocState(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    )  # fmt: skip


def _freed_bytes(library: Any) -> float:
    """Bytes that were freed and are kept; infinite where glibc is too old to tell (before 2.33)."""
    if not hasattr(library, "mallinfo2"):
        return math.inf
    library.mallinfo2.restype = _MallocState
    return float(library.mallinfo2().fordblks)


def _c_library() -> Any:
    with contextlib.suppress(OSError, TypeError):  # on Windows, CDLL does not take None
        return ctypes.CDLL(None)
    return None
