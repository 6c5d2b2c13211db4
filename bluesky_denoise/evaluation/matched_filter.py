"""The matched filter: what stands out of an image, in the raw frame's own noise."""

import numpy as np
from scipy.ndimage import maximum_filter

from bluesky_denoise.evaluation.baselines import gaussian

__all__ = ["filtered_z", "find_peaks"]

SURROUND = 4.0
"""Width of the surroundings that are subtracted, in widths of the peak."""


def filtered_z(
    image: np.ndarray, counts: np.ndarray, sigma_px: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """Say how far every pixel stands out as the middle of a Gaussian peak.

    The filter is a Gaussian of the peak's width less a broad one. Its result is divided by
    the noise that it has on the *raw* counts, whatever image is looked at: so a threshold
    means the same peak, in photons, for a raw and for a denoised frame.

    Parameters
    ----------
    image : (H, W), counts or expected counts
    counts : (H, W) raw counts, for the noise
    sigma_px : standard deviation of the peaks looked for, pixels
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (H, W) float64, standard deviations; unit variance on flat raw frames, away from
        masks and edges.
    """
    broad = SURROUND * sigma_px
    found = gaussian(image, sigma_px, mask) - gaussian(image, broad, mask)
    level = np.maximum(gaussian(counts, broad, mask), 1e-9)
    square = 1 / (4 * sigma_px**2) - 1 / (sigma_px**2 + broad**2) + 1 / (4 * broad**2)
    return found / np.sqrt(level * square / np.pi)


def find_peaks(z: np.ndarray, threshold: float, apart_px: int) -> np.ndarray:
    """Find the highest pixels above a threshold.

    Parameters
    ----------
    z : (H, W)
    threshold : least z
    apart_px : a peak is the highest within this distance, along rows and columns

    Returns
    -------
    numpy.ndarray
        (n, 2) rows and columns.
    """
    highest = maximum_filter(z, 2 * apart_px + 1, mode="nearest")
    return np.argwhere((z == highest) & (z >= threshold))
