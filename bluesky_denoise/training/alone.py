"""One training at a time writes to one place."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bluesky_denoise.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

__all__ = ["alone_at"]


@contextlib.contextmanager
def alone_at(output: Path) -> Iterator[None]:
    """Keep others from writing the same weights; a process that is killed keeps none.

    Raises
    ------
    CheckpointError
        If another process is at it.
    """
    if sys.platform == "win32":
        yield
        return
    path = output.with_name(f".{output.name}.lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just ended may have removed the file meanwhile: others lock another.
            taken = not os.fstat(file.fileno()).st_nlink
        except OSError:
            taken = True
        if taken:
            raise CheckpointError(
                f"Another training is writing {output}. Wait for it, or give another name."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
