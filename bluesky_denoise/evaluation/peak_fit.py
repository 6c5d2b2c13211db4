"""Gaussian peaks fitted to many small images at once, by Poisson likelihood."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.photons.poisson_fit import fit_poisson

__all__ = ["PeakShapes", "fit_intensity", "fit_peaks"]

FAR_PX = 4.0
"""A fitted centre is kept within this distance of where it started."""
SIGMA_PX = (0.4, 10.0)
"""Limits of fitted standard deviations."""


@dataclass(frozen=True, eq=False)
class PeakShapes:
    """Gaussian peaks, one in each of N images; all arrays are (N,)."""

    intensity: np.ndarray
    """Counts in the whole peak."""
    row: np.ndarray
    """Centre, pixels of the image."""
    col: np.ndarray
    """As ``row``, along columns."""
    sigma_row: np.ndarray
    """Standard deviation along rows, pixels."""
    sigma_col: np.ndarray
    """As ``sigma_row``, along columns."""
    background: np.ndarray
    """Counts per pixel."""


def _unit(shape: tuple[int, int], peaks: PeakShapes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return peaks of one count, (N, h, w), and scaled offsets (N, h, 1), (N, 1, w)."""
    r = (np.arange(shape[0]) - peaks.row[:, None]) / peaks.sigma_row[:, None]
    c = (np.arange(shape[1]) - peaks.col[:, None]) / peaks.sigma_col[:, None]
    height = 1 / (2 * np.pi * peaks.sigma_row * peaks.sigma_col)
    g = height[:, None, None] * np.exp(-0.5 * (r[:, :, None] ** 2 + c[:, None, :] ** 2))
    return g, r[:, :, None], c[:, None, :]


def fit_peaks(images: np.ndarray, start: PeakShapes) -> PeakShapes:
    """Fit intensity, position, widths and background.

    On raw counts this is the maximum of the likelihood: no unbiased measurement of a peak
    of unknown shape has a smaller error, if photons are not too few. Expected counts of a
    denoiser are fitted in the same way.

    Parameters
    ----------
    images : (N, h, w), counts or expected counts, >= 0
    start : where to begin

    Returns
    -------
    PeakShapes
    """
    images = np.asarray(images)
    start_at = np.stack(
        [
            np.maximum(start.intensity, 1e-3),
            start.row,
            start.col,
            np.log(start.sigma_row),
            np.log(start.sigma_col),
            np.maximum(start.background, 1e-4),
        ],
        1,
    ).astype(np.float64)
    low, high = np.log(SIGMA_PX[0]), np.log(SIGMA_PX[1])

    def shapes(p: np.ndarray) -> PeakShapes:
        return PeakShapes(p[:, 0], p[:, 1], p[:, 2], np.exp(p[:, 3]), np.exp(p[:, 4]), p[:, 5])

    def model(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        g, r, c = _unit(images.shape[1:], shapes(p))
        s = p[:, 0, None, None] * g
        wide = np.exp(p[:, 3:5])[:, :, None, None]
        slopes = [g, s * r / wide[:, 0], s * c / wide[:, 1], s * (r**2 - 1), s * (c**2 - 1)]
        slopes.append(np.ones_like(g))
        expected = s + p[:, 5, None, None]
        return expected.reshape(len(p), -1), np.stack(slopes, 1).reshape(len(p), 6, -1)

    def bound(p: np.ndarray, before: np.ndarray) -> np.ndarray:
        p[:, 0] = np.maximum(p[:, 0], 1e-3)
        p[:, 1:3] = np.clip(p[:, 1:3], start_at[:, 1:3] - FAR_PX, start_at[:, 1:3] + FAR_PX)
        p[:, 3:5] = np.clip(p[:, 3:5], before[:, 3:5] - 0.5, before[:, 3:5] + 0.5).clip(low, high)
        p[:, 5] = np.maximum(p[:, 5], 1e-4)
        return p

    return shapes(fit_poisson(images.reshape(len(images), -1), model, start_at, bound)[0])


def fit_intensity(images: np.ndarray, known: PeakShapes) -> np.ndarray:
    """Fit intensity and background of peaks whose position and shape are known.

    On raw counts this is the matched filter with Poisson weights: the bound that no
    unbiased measurement beats.

    Parameters
    ----------
    images : (N, h, w), counts or expected counts
    known : true positions and shapes; intensity and background are where to begin

    Returns
    -------
    numpy.ndarray
        (N,) counts in the peaks; may be negative.
    """
    n = np.asarray(images, np.float64)
    g, _, _ = _unit(n.shape[1:], known)
    p = np.stack([known.intensity, known.background], 1).astype(np.float64)
    for _ in range(8):
        level = np.maximum(p[:, 1, None, None], 1e-3)
        # Weights of the model, never of single counts, which would bias the result.
        mu = np.maximum(p[:, 0, None, None] * g + level, 0.1 * level)
        exact = p[:, 0, None, None] * g + p[:, 1, None, None]
        stack = np.stack([g, np.ones_like(g)], 1).reshape(len(n), 2, -1)
        weighted = stack / mu.reshape(len(n), 1, -1)
        slope = weighted @ (n - exact).reshape(len(n), -1, 1)
        p = p + np.linalg.solve(weighted @ stack.transpose(0, 2, 1), slope)[:, :, 0]
    return p[:, 0]
