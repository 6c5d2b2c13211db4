"""Memory that was freed is kept for the next frame, and comes in large pages."""

import ctypes
import sys
from collections.abc import Mapping

__all__ = ["keep_freed_memory", "with_large_pages"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 << 20
"""Bytes; glibc allows no more."""
_MOST_KEPT = 256 << 20
"""Bytes of freed memory that are kept at the end of the heap."""
_LARGE_PAGES = "glibc.malloc.hugetlb"


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


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a new process has its memory in pages of 2 MB.

    A processor finds them faster than as many small ones, and the arrays of a network are many.
    What the environment says of it already is left as it is; C libraries other than glibc 2.35 or
    newer do not heed it.

    Parameters
    ----------
    environment : of this process

    References
    ----------
    The GNU C Library, section "Memory Allocation Tunables"
    """
    told = environment.get("GLIBC_TUNABLES", "")
    if _LARGE_PAGES in told:
        return dict(environment)
    tunables = [told] if told else []
    return {**environment, "GLIBC_TUNABLES": ":".join([*tunables, f"{_LARGE_PAGES}=1"])}
