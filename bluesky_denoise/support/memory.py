"""Memory that was freed is kept for the next frame."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 << 20
"""Bytes; glibc allows no more."""
_MOST_KEPT = 256 << 20
"""Bytes of freed memory that are kept at the end of the heap."""


def keep_freed_memory() -> bool:
    """Ask the C library not to give freed memory back to the system after every array.

    A network on the CPU allocates and frees the same arrays for each frame; fetching them
    from the system anew took a fourth of its time. This holds for the whole process, so it is
    for processes that do little else.

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
    return bool(mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT) and blocks)
