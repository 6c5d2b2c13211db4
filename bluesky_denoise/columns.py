"""What a table of Tiled can have as columns: it would refuse others when all has been denoised."""

import re
from collections.abc import Sequence

__all__ = ["LONGEST_OF_KEY", "LONGEST_OF_ROI", "MOST_REGIONS", "check_columns"]

LONGEST_OF_ROI = len("ts_") + len("_center_row_error")
"""Bytes that the longest number of a region adds to its name, with that of its time stamp."""
LONGEST_OF_KEY = len("ts_") + len("_denoised_total")
"""The same of a data key."""
MOST_REGIONS = 47
"""With 16 numbers and as many time stamps each. PostgreSQL takes 1600 columns, SQLite 2000; two are
of Tiled, and some tens are left to the raw readings."""
_LONGEST_COLUMN = 63
"""Bytes: of PostgreSQL, and Tiled asks it of SQLite too."""
_FORBIDDEN = re.compile(r"""^[^a-zA-Z_]|['"`;\\%()=+]|--|/\*|\*/""")


def check_columns(names: Sequence[str], longest: int) -> None:
    """Refuse names with which no table of Tiled can have columns.

    Parameters
    ----------
    names :
        Of data keys, or of regions.
    longest :
        Bytes that what is measured adds to them, at most.

    Raises
    ------
    ValueError
        With the name, and what is wrong with it.
    """
    most = _LONGEST_COLUMN - longest
    seen: dict[str, str] = {}
    for name in names:
        if len(name.encode()) > most:
            raise ValueError(
                f"{name!r} has {len(name.encode())} bytes; expected at most {most}, so that the "
                f"columns of its numbers in Tiled have at most {_LONGEST_COLUMN}"
            )
        if found := _FORBIDDEN.search(name):
            raise ValueError(
                f"{name!r} has {found.group()!r}, which Tiled refuses in the name of a column, as "
                "anything but a letter or _ of ASCII at the beginning"
            )
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f"{other!r} and {name!r} are the same to the tables of Tiled, which do not tell "
                "upper from lower case; rename one"
            )
