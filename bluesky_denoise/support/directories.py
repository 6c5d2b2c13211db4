"""Directories that files are to go into, and that need not be there yet."""

import os
import tempfile
from pathlib import Path

from bluesky_denoise.errors import SettingsError

__all__ = ["check_writable", "data_directory"]


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


def data_directory() -> Path:
    """Return where programs keep what is the user's.

    Raises
    ------
    SettingsError
        If nobody knows, as in a container whose user has no home.
    """
    if given := os.environ.get("XDG_DATA_HOME"):
        return Path(given)
    try:
        return Path.home() / ".local" / "share"
    except RuntimeError:
        raise SettingsError(
            "There is no home directory in which results could wait while Tiled is down. Set "
            "HOME, or `backup_directory`, to a directory that can be written to."
        ) from None
