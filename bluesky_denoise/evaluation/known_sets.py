"""Public series of frames: which of them the shipped weights have seen, and what each is good for.

A file is recognised by its name. Frames of any other file are all used, and nothing is
said about whether they were trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KNOWN_SETS", "KnownSet", "known_set"]


@dataclass(frozen=True)
class KnownSet:
    """What is known of one series."""

    held_out: str
    """``yes``: no frame of the sample was trained on, or another block only, with a gap;
    ``sample seen``: other frames of the same sample were; ``trained on``; ``unknown``."""
    frames: Sequence[int] | None = None
    """Frames that are thinned and scored; None: all."""
    targets: Sequence[int] = ()
    """Frames that are scored against the sum of their neighbours."""
    around: int = 10
    """Neighbours on either side, at most."""
    block: tuple[int, int] | None = None
    """First and last frame that may be a neighbour; None: of the whole series."""
    line: int | None = None
    """Column of a weak vertical line whose contrast is compared."""
    stills: Sequence[int] | None = None
    """Frames with sharp spots; None: none."""


KNOWN_SETS = {
    # Specular line of 9 columns. Frames below 50 were trained on.
    "scan_372530": KnownSet("yes", range(75, 146), range(75, 146, 10), block=(65, 162), line=211),
    # Frames 75 to 125 of the same scan, shipped.
    "i07_line": KnownSet("yes", targets=range(10, 41, 5), line=211),
    # Every fourth frame was trained on.
    "scan_372528": KnownSet("sample seen", range(2, 45, 4)),
    "scan_372529": KnownSet("sample seen", range(2, 53, 4)),
    "i16_336502": KnownSet("yes", targets=(1, 4, 8)),
    # Frames 0, 3, 5 and 7 were trained on; the last five are without a crystal.
    "thaumatin_grid": KnownSet(
        "yes",
        range(9, 19),
        targets=range(14, 19),
        block=(14, 18),
        stills=(1, 2, 4, 6, 8, 9, 10, 11),
    ),
    "saxs_polymers": KnownSet("yes", range(6, 12)),
    "lab_saxs_protein": KnownSet("yes"),
    # Frames 0, 3 and 6 were trained on, a crop of each.
    "waxs_LaB6_tilts": KnownSet("sample seen", (1, 2, 4, 5, 7)),
    "waxs_PU_and_blank": KnownSet("sample seen", (1, 2, 4, 5)),
    "ceria_pilatus2m": KnownSet("trained on"),
    "aps_lab6": KnownSet("trained on"),
    "aps_pu": KnownSet("trained on"),
    "aps_saxs": KnownSet("trained on"),
    "ceria": KnownSet("trained on"),
    "i07_372528": KnownSet("trained on"),
    "i07_372529": KnownSet("trained on"),
    "i07_372530": KnownSet("trained on"),
    "thaumatin": KnownSet("trained on", stills=range(4)),
}
"""Stem of a file's name -> what is known of it; ``training_data/README.md`` has the sources."""


def known_set(stem: str, frames: int) -> KnownSet:
    """Return what is known of a series; for others, targets in the middle if it is long."""
    if stem in KNOWN_SETS:
        return KNOWN_SETS[stem]
    around = min(10, (frames - 1) // 2)
    targets = range(around, frames - around, max(1, (frames - 2 * around) // 3))
    return KnownSet("unknown", targets=targets if frames >= 5 else (), around=around)
