"""Binomial thinning: two independent short exposures out of one."""

import numpy as np

from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.frame_checks import check_mask
from bluesky_denoise.photons.photon_checks import looks_poisson

__all__ = ["check_photon_counts", "thin"]


def check_photon_counts(
    counts: np.ndarray, mask: np.ndarray | None = None, frames: int = 5
) -> None:
    """Refuse frames that thinning is not valid for.

    Parameters
    ----------
    counts : (..., H, W), counts
    mask : (H, W), nonzero where a pixel is invalid
    frames : how many are looked at, spread evenly over a stack

    Raises
    ------
    FrameValueError
        If the counts are no integers, negative, or do not look like photons
        (:func:`~bluesky_denoise.photons.photon_checks.looks_poisson`).
    MaskError
        If the mask does not have the frames' height and width.
    """
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise FrameValueError(
            f"Frames of dtype {counts.dtype} cannot be thinned; raw integer photon counts are "
            "needed, from before any correction."
        )
    if counts.size == 0:
        return
    masked = check_mask(mask, counts.shape[-2:])
    if masked is None:
        masked = np.zeros(counts.shape[-2:], bool)
    least = int(counts.min(where=~masked, initial=0))
    if least < 0:
        raise FrameValueError(
            f"Frames to be thinned have a least value of {least}; photon counts are not negative. "
            "Mask the flagged pixels."
        )
    stack = counts.reshape(-1, *counts.shape[-2:])
    for index in np.unique(np.linspace(0, len(stack) - 1, frames).round().astype(int)):
        if reason := looks_poisson(stack[index], masked):
            raise FrameValueError(
                f"Frame {index} cannot be thinned: {reason}. Only raw photon counts can, from "
                "before any correction; an integrating detector needs repeated frames or pairs."
            )


def thin(
    counts: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split photon counts into a shorter exposure and the remainder.

    If the counts are Poisson, both parts are, and they are independent.

    Parameters
    ----------
    counts : (..., H, W) integer photon counts, before any correction
    fraction : of the photons that go into the first part, above 0 and below 1
    rng : decides photon by photon

    Returns
    -------
    tuple of numpy.ndarray
        First part and remainder, int64, of the shape of ``counts``; their sum is ``counts``.

    Raises
    ------
    FrameValueError
        If the counts are not integers >= 0 that int64 can hold, or the fraction is not between 0
        and 1.

    References
    ----------
    Krull et al., arXiv 2307.06607
    """
    if not 0 < fraction < 1:
        raise FrameValueError(f"Frames cannot be thinned to {fraction}; it must be in (0, 1).")
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise FrameValueError(
            f"Frames of dtype {counts.dtype} cannot be thinned; raw photon counts, integers >= 0, "
            "are needed."
        )
    kind, counts = counts.dtype, counts.astype(np.int64)
    least = int(counts.min(initial=0))  # a flag of 2**64 - 1 is -1
    if least < 0:
        raise FrameValueError(
            f"Frames of dtype {kind}, least value {least}, cannot be thinned; raw photon counts, "
            "integers >= 0, are needed."
        )
    first = rng.binomial(counts, fraction)
    return first, counts - first
