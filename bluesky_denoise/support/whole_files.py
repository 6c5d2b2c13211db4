"""Files that are written whole or not at all: what was there before is there until then."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["check_place", "write_whole"]


def check_place(*paths: Path) -> None:
    """Make the folders of files, and find out whether the files can be written later.

    Raises
    ------
    OSError
        If a path is a folder, or no file can be made beside it.
    """
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; expected the name of a file")
        _part(path).touch()
        _part(path).unlink()


def write_whole(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Write files that belong together: all are on the disk before the first is replaced.

    Raises
    ------
    OSError
        If they cannot be written; what was there is as it was.
    """
    parts = {target: _part(target) for target in contents}
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            parts[target].write_bytes(content)
        for target, part in parts.items():
            part.replace(target)
    except OSError:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
