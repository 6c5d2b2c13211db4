"""Checks of frames before they are learnt from: lit, and with noise of their own."""

from math import comb

import numpy as np

from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.photons.photon_checks import looks_poisson

__all__ = ["check_independent", "check_lit"]

PAIRS = 5
"""How many are looked at, spread evenly over a run."""
LEAST_SCATTER = 0.5
"""Scatter between two exposures, over that of photons: structure, drift and electronic noise
can only add to it, dead time takes a few percent."""
SURE_Z = 6.0
"""Standard deviations that the scatter must be below that of photons."""
FEW = 20
"""Counts in both exposures, up to which it is looked whether the short one has more."""
SURE_PIXELS = 50.0
"""Pixels expected to have more counts in the short exposure, from which on none is a sign."""


def check_lit(frames: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse frames without a count in any valid pixel.

    Parameters
    ----------
    frames : (n, H, W)
    mask : (H, W) bool, True where invalid
    name : for the message of the error

    Raises
    ------
    FrameValueError
        If all of them are dark.
    """
    if not any((frame > 0)[~mask].any() for frame in frames):
        raise FrameValueError(
            f"{name} has no counts in the {int((~mask).sum())} valid pixels of {len(frames)} "
            f"frames; {int(mask.sum())} pixels are masked (nonzero means invalid). Expected frames "
            "with light: was the shutter closed, or the file not yet written?"
        )


def check_independent(short: np.ndarray, long: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse photon counts of two exposures whose noise is, in part, the same.

    Given the counts of both exposures together, those of the short one are binomial, whatever
    the scene. Frames whose noise is not that of photons are not looked at.

    Parameters
    ----------
    short, long : (n, H, W) exposures of the same scenes, one by one
    mask : (H, W) bool, True where invalid
    name : for the message of the error

    Raises
    ------
    FrameValueError
        If they scatter by less than half of what photons do, or if the short exposure nowhere
        has more counts than the long one, though some must by chance.
    """
    pixels = scatter = variance = expected = more = 0.0
    for i in np.unique(np.linspace(0, len(short) - 1, PAIRS).round().astype(int)):
        if looks_poisson(short[i], mask):
            continue
        one, both = short[i][~mask].astype(np.float64), long[i][~mask].astype(np.float64)
        both += one
        one, both = one[both > 0], both[both > 0]
        share = one.sum() / both.sum() if len(both) else 0.0
        if not 0 < share < 1:
            continue
        spread = share * (1 - share)
        pixels += len(both)
        scatter += float(((one - share * both) ** 2 / (spread * both)).sum())
        variance += float((2 + (1 - 6 * spread) / (spread * both)).sum())
        few = both <= FEW
        expected += float(_chances(share)[both[few].astype(int)].sum())
        more += int((2 * one > both)[few].sum())
    told = "expected two exposures that share no photon, as one that is no part of the other."
    if pixels and scatter < min(LEAST_SCATTER * pixels, pixels - SURE_Z * variance**0.5):
        raise FrameValueError(
            f"{name}: exposures of one scene differ by {scatter / pixels:.2f} of the variance that "
            f"photons have; {told}"
        )
    if expected > SURE_PIXELS and not more:
        raise FrameValueError(
            f"{name}: no pixel has more counts in the short exposure than in the long one, where "
            f"{expected:.0f} must by chance: the long one contains it; {told}"
        )


def _chances(share: float) -> np.ndarray:
    """Return the chance that more than half of 0 to 20 counts are in the short exposure."""
    return np.array(
        [
            sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1) if 2 * k > n)
            for n in range(FEW + 1)
        ]
    )
