"""Binomial thinning: two independent short exposures out of one."""

import numpy as np

from bluesky_denoise.errors import FrameValueError

__all__ = ["check_photon_counts", "thin"]


def check_photon_counts(counts: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Refuse frames that thinning is not valid for.

    Photon counts are integers >= 0, and neighbours differ by no less than their noise: a
    pedestal makes large values that hardly scatter, a gain leaves only multiples of it.

    Parameters
    ----------
    counts : (..., H, W), counts
    mask : (H, W), nonzero where a pixel is invalid

    Raises
    ------
    FrameValueError
        If the counts are not integers, negative, or look like a pedestal or a gain.
    """
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer):
        raise FrameValueError(
            f"Frames of dtype {counts.dtype} cannot be thinned; raw integer photon counts are "
            "needed, from before any correction."
        )
    values = counts if mask is None else counts[..., np.asarray(mask) == 0]
    if values.size == 0:
        return
    if int(values.min()) < 0:
        raise FrameValueError(
            f"Frames to be thinned have a least value of {int(values.min())}; photon counts are "
            "not negative. Mask the flagged pixels."
        )
    found = np.unique(values[:1] if values.ndim > 2 else values)
    step = int(np.gcd.reduce(found.astype(np.int64))) if found.size > 4 else 1
    if step > 1:
        raise FrameValueError(
            f"All values of the frames to be thinned are multiples of {step}: a detector gain, "
            "not photons. Divide by it first, if it counts photons."
        )
    scatter = _scatter(counts, mask)
    if scatter < 0.5:
        raise FrameValueError(
            f"Neighbouring pixels of the frames to be thinned vary less than photons would, "
            f"{scatter:.2f} of it: a pedestal, or an integrating detector. Only photon counts can "
            "be thinned."
        )


def _scatter(counts: np.ndarray, mask: np.ndarray | None) -> float:
    """Return the variance of neighbouring pixels over what photons would have at least."""
    frame = counts.reshape(-1, *counts.shape[-2:])[0].astype(np.float64)
    good = np.ones(frame.shape, bool) if mask is None else np.asarray(mask) == 0
    pairs = good[:, 1:] & good[:, :-1]
    total = (frame[:, 1:] + frame[:, :-1])[pairs]
    lit = total > 0
    if lit.sum() < 100:
        return 1.0
    return float(np.mean(np.diff(frame, axis=1)[pairs][lit] ** 2 / total[lit]))


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
        If the counts are not integers >= 0, or the fraction is not between 0 and 1.

    References
    ----------
    Krull et al., arXiv 2307.06607
    """
    if not 0 < fraction < 1:
        raise FrameValueError(f"Frames cannot be thinned to {fraction}; it must be in (0, 1).")
    counts = np.asarray(counts)
    if not np.issubdtype(counts.dtype, np.integer) or (counts.size and counts.min() < 0):
        raise FrameValueError(
            f"Frames of dtype {counts.dtype}, least value {counts.min()}, cannot be thinned; raw "
            "photon counts, integers >= 0, are needed."
        )
    counts = counts.astype(np.int64)
    first = rng.binomial(counts, fraction)
    return first, counts - first
