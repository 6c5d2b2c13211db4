"""Denoisers that need no training, to be compared with."""

from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "SIGMAS",
    "anscombe_bm3d",
    "anscombe_nlm",
    "best_gaussian",
    "gaussian",
    "unbiased_inverse",
]

SIGMAS = (0.0, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)
"""Widths that `best_gaussian` tries, pixels."""
BM3D_PX = 16
"""Least side of what BM3D is given; smaller frames are mirrored at their ends."""


def gaussian(counts: np.ndarray, sigma_px: float, mask: np.ndarray | None = None) -> np.ndarray:
    """Blur, with masked pixels and the outside of the frame left out of every average.

    Parameters
    ----------
    counts : (H, W), counts
    sigma_px : standard deviation, pixels; 0 returns the counts
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (H, W) float64, 0 where masked.
    """
    valid = np.ones(counts.shape) if mask is None else (np.asarray(mask) == 0).astype(np.float64)
    known = np.asarray(counts, np.float64) * valid
    if sigma_px == 0:
        return known
    return _blur(known, sigma_px) / np.maximum(_blur(valid, sigma_px), 1e-9) * valid


def _blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    reach = int(np.ceil(4 * sigma_px))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.moveaxis(image, axis, -1)
        size = padded.shape[-1] + 2 * reach
        spectrum = np.fft.rfft(padded, size) * np.fft.rfft(taps, size)
        blurred = np.fft.irfft(spectrum, size)[..., reach : reach + padded.shape[-1]]
        image = np.moveaxis(np.maximum(blurred, 0), -1, axis)
    return image


def best_gaussian(
    counts: np.ndarray,
    score: Callable[[np.ndarray], float],
    mask: np.ndarray | None = None,
    sigmas: Sequence[float] = SIGMAS,
) -> tuple[np.ndarray, float]:
    """Blur with the width that scores lowest.

    The score may look at held-out counts: then this is the best that any Gaussian could
    have done, which nobody at a beamline can know.

    Returns
    -------
    tuple
        (H, W) float64 counts, and the sigma in pixels.
    """
    tried = [(gaussian(counts, sigma, mask), sigma) for sigma in sigmas]
    return min(tried, key=lambda pair: score(pair[0]))


def unbiased_inverse(stable: np.ndarray) -> np.ndarray:
    """Invert the Anscombe transform without the bias of its algebraic inverse.

    Parameters
    ----------
    stable : estimate of the mean of ``2 sqrt(n + 3/8)``

    Returns
    -------
    numpy.ndarray
        Expected counts, >= 0.

    References
    ----------
    Mäkitalo & Foi (2011), doi:10.1109/TIP.2011.2121085, the closed-form approximation.
    """
    d = np.maximum(stable, 2 * np.sqrt(0.375))
    root = np.sqrt(1.5)
    out = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8
    return np.maximum(out, 0)


def anscombe_bm3d(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Stabilise, denoise with BM3D, and invert without bias.

    Masked pixels are filled from a Gaussian of 2 pixels before, and set to 0 after.
    Needs the extra ``evaluation``.

    Parameters
    ----------
    counts : (H, W), counts
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (H, W) float64 expected counts.

    References
    ----------
    Dabov et al. (2007), doi:10.1109/TIP.2007.901238
    """
    from bm3d import bm3d

    stable, valid = _stabilised(counts, mask)
    rows, cols = stable.shape
    # On 8 x 8 pixels it crashes the process, smaller ones it refuses.
    padding = [(0, max(0, BM3D_PX - size)) for size in stable.shape]
    stable = np.pad(stable, padding, mode="symmetric")
    # BM3D's own scale is [0, 1]; the noise of the transform is 1 in any case.
    top = max(float(stable.max()), 1.0)
    found = bm3d(stable / top, sigma_psd=1 / top)[:rows, :cols] * top
    return unbiased_inverse(found) * valid


def anscombe_nlm(counts: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Stabilise, denoise by non-local means of scikit-image, and invert without bias.

    Patches of 5 x 5 pixels within 6 pixels, ``h`` = 0.8 of the known noise, as its
    documentation recommends. Masked pixels as in `anscombe_bm3d`. Needs the extra
    ``evaluation``.

    Parameters
    ----------
    counts : (H, W), counts
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    numpy.ndarray
        (H, W) float64 expected counts.

    References
    ----------
    Buades, Coll & Morel (2005), doi:10.1109/CVPR.2005.38
    """
    from skimage.restoration import denoise_nl_means

    stable, valid = _stabilised(counts, mask)
    rows, cols = stable.shape
    # It would take frames one pixel wide for lines of one dimension.
    stable = np.pad(stable, [(0, max(0, 2 - size)) for size in stable.shape], mode="symmetric")
    smooth = denoise_nl_means(stable, patch_size=5, patch_distance=6, h=0.8, sigma=1.0)
    return unbiased_inverse(smooth[:rows, :cols]) * valid


def _stabilised(counts: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Apply the Anscombe transform, masked pixels filled from their surroundings."""
    counts = np.asarray(counts, np.float64)
    valid = np.ones(counts.shape, bool) if mask is None else np.asarray(mask) == 0
    filled = np.where(valid, counts, 0)
    if not valid.all():
        weight = _blur(valid.astype(np.float64), 2.0)
        mean = filled[valid].mean() if valid.any() else 0.0
        smooth = np.where(weight > 1e-3, _blur(filled, 2.0) / np.maximum(weight, 1e-3), mean)
        filled = np.where(valid, counts, smooth)
    return 2 * np.sqrt(filled + 0.375), valid
