"""Memory that was freed is kept for the next frame."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 << 20
"""Bytes; glibc allows no more."""


def keep_freed_memory(most_bytes: int = 256 << 20) -> bool:
    """Ask the C library not to give freed memory back to the system after every array.

    A network on the CPU allocates and frees the same arrays for each frame; fetching them
    from the system anew took a fourth of its time. This holds for the whole process, so it is
    for processes that do little else.

    Parameters
    ----------
    most_bytes : freed memory at the end of the heap that is kept, bytes

    Returns
    -------
    bool
        False where the C library is not glibc, or refuses.

    References
    ----------
    mallopt(3)
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    blocks = mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
    return bool(mallopt(_M_TRIM_THRESHOLD, most_bytes) and blocks)
