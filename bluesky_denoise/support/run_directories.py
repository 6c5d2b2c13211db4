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
        parsed = list(string.Formatter().parse(str(directory)))
    except ValueError as error:
        raise ValueError(f"{directory}: {error}; a brace that is meant is written twice") from None
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        if not field.partition("[")[0].isidentifier():
            raise ValueError(
                f"{directory}: expected keys of start documents in braces, such as {{proposal}} or "
                "{proposal[id]}"
            )
        if not any(_takes(value, spec or "", conversion) for value in (1, 1.0, "a")):
            raise ValueError(
                f"{directory}: neither a number nor a text can be written in the way that is given "
                f"for {field}; expected such as {{scan_id:05d}}"
            )
    fixed = next(path for path in directory.parents if not names_keys(path))
    if not fixed.is_dir():
        raise ValueError(f"{fixed} is no directory")


def _takes(value: float | str, spec: str, conversion: str | None) -> bool:
    """Tell whether a value can be formatted, as far as that is known before there is one."""
    try:
        format(string.Formatter().convert_field(value, conversion), spec)
    except ValueError:
        return "{" in spec  # which has keys in it, too
    return True


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

    def format_field(self, value: Any, format_spec: str) -> str:
        """Write a value; one that cannot be written so fits as little as one of another type."""
        try:
            return str(super().format_field(value, format_spec))
        except ValueError as error:
            raise TypeError(str(error)) from None
