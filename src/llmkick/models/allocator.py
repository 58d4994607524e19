"""Control over freed CPU memory that the C library keeps. It has an effect only with glibc."""

from __future__ import annotations

import contextlib
import ctypes
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


def give_back_freed_memory() -> bool:
    """Return freed memory to the system: glibc keeps pieces otherwise, which add up over a model.

    Returns whether any memory was released.
    """
    library = _c_library()
    if library is None or not hasattr(library, "malloc_trim"):
        return False
    return bool(library.malloc_trim(0))


def _c_library() -> Any:
    with contextlib.suppress(OSError, TypeError):  # on Windows, CDLL does not take None
        return ctypes.CDLL(None)
    return None
