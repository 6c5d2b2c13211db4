"""Directories that have what a run says of itself in their names, such as its proposal."""

import string
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

__all__ = ["check_run_directory", "directory_of_run", "names_keys"]


def names_keys(directory: Path) -> bool:
    """Tell whether a path has names in braces, which stand for keys of start documents."""
    return "{" in str(directory) or "}" in str(directory)


def check_run_directory(directory: Path) -> None:
    """Find out whether a path with names in braces may be one.

    Parameters
    ----------
    directory :
        Such as ``/data/{cycle}/{proposal[id]}/denoised``.

    Raises
    ------
    ValueError
        If the names are none, or what comes before them is no directory.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(str(directory))]
    except ValueError as error:
        raise ValueError(f"{directory}: {error}; a brace that is meant is written twice") from None
    if any(field is not None and not field.partition("[")[0].isidentifier() for field in fields):
        raise ValueError(
            f"{directory}: expected keys of start documents in braces, such as {{proposal}} or "
            "{proposal[id]}"
        )
    fixed = next(path for path in directory.parents if not names_keys(path))
    if not fixed.is_dir():
        raise ValueError(f"{fixed} is no directory")


def directory_of_run(directory: Path, start: Mapping[str, Any]) -> Path:
    """Return the directory of a run.

    Parameters
    ----------
    directory :
        Absolute; names in braces stand for what the start document has under these keys.
    start :
        The start document.

    Raises
    ------
    ValueError
        If it has no such key, or what is there cannot be the name of a directory.
    """
    if not names_keys(directory):
        return directory
    try:
        return Path(_Names().vformat(str(directory), (), start))
    except KeyError as error:
        raise ValueError(f"the start document has no key {error} for {directory}") from None
    except (IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"the start document does not fit {directory}: {error}") from None


class _Names(string.Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the value of a field, which must not lead into another directory."""
        value, first = super().get_field(field_name, args, kwargs)
        name = str(value)
        is_name = isinstance(value, str | Real) and name.strip() not in ("", ".", "..")
        if not is_name or set(name) & set("/\\#?\0"):
            raise ValueError(f"{field_name} of the start document, {value!r}, names no directory")
        return value, first
