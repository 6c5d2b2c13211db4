"""Directories that are made when something is written into them."""

import os
import tempfile
from pathlib import Path

__all__ = ["check_writable"]


def check_writable(directory: Path) -> None:
    """Find out whether files can be written into a directory, without making it.

    Parameters
    ----------
    directory :
        Absolute. Until it is made, what is there of its path counts.

    Raises
    ------
    OSError
        If they cannot.
    """
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    with tempfile.TemporaryFile(dir=there):
        pass
