"""Python looks for no garbage where there is none: while modules are imported, and at the end."""

import atexit
import contextlib
import gc
from collections.abc import Iterator

__all__ = ["keep_garbage_at_exit", "no_garbage"]


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Promise that what is made meanwhile stays: modules, and what lives as long as the process.

    Looking for garbage took a fifth of the time of importing torch and Tiled's client. What
    was made is not looked through later either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_garbage_at_exit() -> None:
    """Leave all objects to the system when the process ends, which is half a second sooner.

    For processes that close their files themselves: finalizers of objects in reference cycles
    are not run.
    """
    atexit.register(gc.freeze)
