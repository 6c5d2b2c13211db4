"""Centre and widths of a peak with their errors, fitted to raw counts."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.photons.poisson_fit import fit_poisson
from bluesky_denoise.regions.extraction import LEAST_SIGMA_PX, Ellipse

__all__ = ["FWHM", "PeakShape", "fit_shape"]

FWHM = 2 * np.sqrt(2 * np.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
REACH = 5.0
"""Pixels within so many standard deviations of the peak are fitted, and"""
REACH_PX = 6.0
"""so many pixels more, which tell the background."""
MOST_ERROR = 0.5
"""A width with a larger relative error is not known."""
CURVED = 6.0
"""Errors of few photons are larger than the curvature of the likelihood says: by a factor of
1 + CURVED e^2, with e the relative error of the widths. Found on simulated peaks of 5 to 25
standard deviations that were seen in denoised frames."""
STEPS = 20


@dataclass(frozen=True)
class PeakShape:
    """Where a peak is and how wide, in pixels; NaN where it cannot be told."""

    row: float = np.nan
    """Centre, from the middle of the first row of the crop."""
    col: float = np.nan
    """As ``row``, along columns."""
    row_error: float = np.nan
    col_error: float = np.nan
    """Standard errors of the centre."""
    width_row: float = np.nan
    width_col: float = np.nan
    """Full widths at half maximum."""
    width_row_error: float = np.nan
    width_col_error: float = np.nan
    """Standard errors of the widths."""


def fit_shape(counts: np.ndarray, pixels: np.ndarray, start: Ellipse, level: float) -> PeakShape:
    """Fit a Gaussian of any tilt on a sloping background to raw counts.

    The fit begins where a denoised image shows the peak; what it finds depends on the raw
    counts alone, and is the most likely under Poisson noise. Errors are those of counting
    photons, for a peak that is a Gaussian.

    Parameters
    ----------
    counts : (h, w) counts, >= 0
    pixels : (h, w) bool, those that may be used
    start : the peak in a denoised image
    level : background to begin with, counts per pixel

    Returns
    -------
    PeakShape
        NaN where the fit leaves the surroundings of the peak, or a width has an error of
        more than half of itself; and along an axis of one pixel, as that of a strip detector.
    """
    centre, sigma = (start.row, start.col), np.sqrt(np.diag(start.covariance))
    reach = REACH * sigma + REACH_PX
    corner = [max(int(at - far), 0) for at, far in zip(centre, reach, strict=True)]
    end = [int(at + far) + 2 for at, far in zip(centre, reach, strict=True)]
    window = tuple(slice(a, b) for a, b in zip(corner, end, strict=True))
    rows, cols = (found.astype(np.float64) for found in np.nonzero(pixels[window]))
    n = np.asarray(counts, np.float64)[window][pixels[window]]
    y0, x0 = start.row - corner[0], start.col - corner[1]
    if len(n) < 12 or not n.any():
        return PeakShape()
    factor = np.linalg.cholesky(start.covariance)
    seen = np.array([np.ptp(rows) > 0, np.ptp(cols) > 0])  # along rows, columns
    # Height, centre, widths, tilt, level and slopes, as in `model`.
    free = np.array([True, *seen, *seen, seen.all(), True, *seen])

    def model(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, y, x, a, b, tilt, base, down, across = p[0]
        dy, dx = rows - y, cols - x
        # Covariance L L^T with L = [[a, 0], [tilt, b]]; u, v are the offsets over L.
        u = dy / a
        v = (dx - tilt * u) / b
        g = np.exp(-0.5 * (u * u + v * v))
        peak = height * g
        plane = np.stack([np.ones_like(g), (rows - y0) / 10, (cols - x0) / 10])
        slope_x = peak * v / b
        slope_y = peak * u / a - slope_x * tilt / a
        shape = [slope_y, slope_x, u * slope_y, v * slope_x, u * slope_x]
        expected = peak + base * plane[0] + down * plane[1] + across * plane[2]
        slopes = np.concatenate([[g], shape, plane])
        slopes[~free] = 0
        return expected[None], slopes[None]

    least, most = 0.5 * LEAST_SIGMA_PX, 3 * np.sqrt(np.trace(start.covariance)) + 2

    def bound(p: np.ndarray, before: np.ndarray) -> np.ndarray:
        p[:, 0] = np.clip(p[:, 0], before[:, 0] / 5, before[:, 0] * 5)
        p[:, 3:5] = np.clip(p[:, 3:5], before[:, 3:5] / 1.6, before[:, 3:5] * 1.6)
        p[:, 3:5] = np.clip(p[:, 3:5], least, most)
        return p

    height = max(float(n.max()) - level, 0.3 * float(n.max()))
    first = [height, y0, x0, factor[0, 0], factor[1, 1], factor[1, 0], max(level, 1e-3), 0.0, 0.0]
    found, information = fit_poisson(n[None], model, np.array([first]), bound, steps=STEPS)
    _, y, x, a, b, tilt, *_ = found[0]
    covariance = np.zeros((9, 9))
    try:
        covariance[np.ix_(free, free)] = np.linalg.inv(information[0][np.ix_(free, free)])
    except np.linalg.LinAlgError:
        return PeakShape()
    sigmas = np.array([a, np.hypot(b, tilt)])
    slope = np.array([b, tilt]) / sigmas[1]  # of the standard deviation along columns
    variances = np.array([covariance[3, 3], slope @ covariance[4:6, 4:6] @ slope])
    of_centre = np.diag(covariance)[1:3]
    if not (np.isfinite(covariance).all() and min(*variances[seen], *of_centre[seen]) > 0):
        return PeakShape()
    errors = np.sqrt(variances)
    moved = np.hypot((y - y0) / sigma[0], (x - x0) / sigma[1])
    if not (moved < 3 and (errors < MOST_ERROR * sigmas).all()):
        return PeakShape()
    curved = 1 + CURVED * float(np.prod((errors / sigmas)[seen])) ** (2 / seen.sum())
    centre, centre_error, width, width_error = np.where(
        seen,
        [
            [y + corner[0], x + corner[1]],
            np.sqrt(of_centre) * curved,
            sigmas * FWHM,
            errors * FWHM * curved,
        ],
        np.nan,
    ).tolist()
    return PeakShape(*centre, *centre_error, *width, *width_error)
