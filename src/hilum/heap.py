"""Freed memory is kept for the next array, where the C library can be told to.

glibc gives every large block back to the system when it is freed. The next array of the same size is mapped
anew, and the kernel clears each of its pages once more: a third of the time of a training step that learns
outlines.
"""

from __future__ import annotations

import ctypes

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """For processes that make arrays of the same sizes over and over: training, exams, phantoms.

    Returns:
        Whether it could be told; False without glibc, where nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
