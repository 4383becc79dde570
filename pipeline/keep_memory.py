"""How does a process keep the memory that a tile has used for the next one?

What glibc's malloc maps for one array it gives back with it, and the system clears every page again for the next array: for the arrays of a
CRF tile that takes as long as a tenth of the work. Workers are started with the same settings as environment variables.
"""

from __future__ import annotations

import ctypes
import sys

# numbers of glibc's <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Let this process keep freed memory until it ends, where the C library is glibc; elsewhere nothing changes."""
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is None:
        return
    for setting, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        allocator(ctypes.c_int(setting), ctypes.c_int(value))
