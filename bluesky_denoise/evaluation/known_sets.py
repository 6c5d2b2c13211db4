"""Public series of frames: which of them the shipped weights have seen, and what each is good for.

A file is recognised by its name and the shape of its frames. Frames of any other file are all used,
and nothing is said about whether they were trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KNOWN_SETS", "KnownSet", "known_set"]


@dataclass(frozen=True)
class KnownSet:
    """What is known of one series."""

    held_out: str
    """``yes``: no frame of the sample was trained on; ``block, sample seen``: an earlier block of
    the same scan was; ``sample seen``: frames in between were; ``trained on``; ``unknown``."""
    frames: Sequence[int] | None = None
    """Frames that are thinned and scored; None: all."""
    targets: Sequence[int] = ()
    """Frames that are scored against the sum of their neighbours; none that was trained on."""
    around: int = 10
    """Neighbours on either side, at most."""
    block: tuple[int, int] | None = None
    """First and last frame that may be a neighbour; None: of the whole series."""
    line: int | None = None
    """Column of a weak vertical line whose contrast is compared."""
    stills: Sequence[int] | None = None
    """Frames with sharp spots; None: none."""
    shape: tuple[int, ...] = ()
    """(n, H, W) of the whole series, by which it is told from others of its name."""


KNOWN_SETS = {
    # Specular line of 9 columns. Every third frame below 50 was trained on.
    "scan_372530": KnownSet(
        "block, sample seen",
        range(75, 146),
        range(75, 146, 10),
        block=(65, 162),
        line=211,
        shape=(163, 195, 487),
    ),
    # Frames 75 to 125 of the same scan, shipped.
    "i07_line": KnownSet(
        "block, sample seen", targets=range(10, 41, 5), line=211, shape=(51, 195, 487)
    ),
    # Every fourth frame was trained on.
    "scan_372528": KnownSet("sample seen", range(2, 45, 4), shape=(45, 195, 487)),
    "scan_372529": KnownSet("sample seen", range(2, 53, 4), shape=(53, 195, 487)),
    "i16_336502": KnownSet("yes", targets=(1, 4, 8), shape=(10, 195, 487)),
    # Frames 0, 3, 5 and 7 were trained on, a crop of each; the last five are without a crystal.
    "thaumatin_grid": KnownSet(
        "sample seen",
        range(9, 19),
        targets=range(14, 19),
        block=(14, 18),
        stills=(1, 2, 4, 6, 8, 9, 10, 11),
        shape=(19, 1043, 1475),
    ),
    # Frames 0 to 5 were trained on.
    "saxs_polymers": KnownSet("block, sample seen", range(6, 12), shape=(12, 195, 487)),
    "lab_saxs_protein": KnownSet("yes", shape=(3, 1043, 981)),
    # Frames 0, 3 and 6 were trained on, a crop of each.
    "waxs_LaB6_tilts": KnownSet("sample seen", (1, 2, 4, 5, 7), shape=(8, 512, 2068)),
    "waxs_PU_and_blank": KnownSet("sample seen", (1, 2, 4, 5), shape=(7, 512, 2068)),
    "ceria_pilatus2m": KnownSet("trained on", shape=(1, 1679, 1475)),
    "aps_lab6": KnownSet("trained on", shape=(3, 256, 512)),
    "aps_pu": KnownSet("trained on", shape=(3, 256, 512)),
    "aps_saxs": KnownSet("trained on", shape=(6, 195, 487)),
    "ceria": KnownSet("trained on", shape=(1, 512, 640)),
    "i07_372528": KnownSet("trained on", shape=(12, 195, 487)),
    "i07_372529": KnownSet("trained on", shape=(14, 195, 487)),
    "i07_372530": KnownSet("trained on", shape=(17, 195, 487)),
    "thaumatin": KnownSet("trained on", stills=range(4), shape=(4, 400, 580)),
}
"""Stem of a file's name -> what is known of it; ``training_data/README.md`` has the sources."""


def known_set(stem: str, shape: tuple[int, ...]) -> KnownSet:
    """Return what is known of a series, (n, H, W); for others, targets in the middle if long."""
    if stem in KNOWN_SETS and shape == KNOWN_SETS[stem].shape:
        return KNOWN_SETS[stem]
    frames = shape[0]
    around = min(10, (frames - 1) // 2)
    targets = range(around, frames - around, max(1, (frames - 2 * around) // 3))
    return KnownSet("unknown", targets=targets if frames >= 5 else (), around=around)
