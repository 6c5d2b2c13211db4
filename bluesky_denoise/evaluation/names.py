"""Names of what is compared: no two alike, for scores of one name count as one."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

__all__ = ["TAKEN_METHODS", "TAKEN_SETS", "told_apart"]

TAKEN_METHODS = (
    "raw",
    "best Gaussian",
    "non-local means",
    "Anscombe + BM3D",
    "raw, shape known",
    "raw, fitted",
    "raw, box sum",
    "measure_roi",
    "Gaussian 1 px",
    "smeared",
    "all photons",
)
"""What stands beside networks in tables and pictures."""
TAKEN_SETS = ("simulated",)
"""What stands beside files of frames."""


def told_apart(paths: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """Name files: by stem, with as many of their folders as tell them apart.

    Parameters
    ----------
    paths : of files; a path without an ending is a name already
    taken : names that none may have

    Returns
    -------
    list of str
        One for each path; two are the same only if their paths are.
    """
    possible = [_names(path) for path in paths]
    times = Counter(chain(taken, *map(set, possible)))
    return [next((n for n in names if times[n] == 1), names[-1]) for names in possible]


def _names(path: Path) -> list[str]:
    """List names of a path, the preferred one first."""
    ways = (path.with_suffix("").parts, path.parts)
    return ["/".join(parts[-depth:]) for parts in ways for depth in range(1, len(parts) + 1)]
