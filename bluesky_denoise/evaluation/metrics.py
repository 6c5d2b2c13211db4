"""What a denoised frame is judged by: squared error, deviance, flux, contrast, peaks."""

import numpy as np

from bluesky_denoise.photons.poisson import added_deviance, deviance, expected_deviance

__all__ = [
    "deviance_ratio",
    "flux_ratio",
    "line_contrast",
    "noise_corrected_error",
    "poisson_deviance",
    "spot_intensities",
    "unexplained_deviance",
]


def _valid(shape: tuple[int, ...], mask: np.ndarray | None) -> np.ndarray:
    return np.ones(shape, bool) if mask is None else np.broadcast_to(np.asarray(mask) == 0, shape)


def noise_corrected_error(
    estimate: np.ndarray,
    reference_counts: np.ndarray,
    scale: float | np.ndarray,
    mask: np.ndarray | None = None,
) -> float:
    """Return the squared error against a longer exposure, without that exposure's noise.

    The reference is Poisson itself, so ``reference_counts * scale ** 2`` is subtracted.
    A raw Poisson frame scores 1, a perfect one 0; by chance it may be below.

    Parameters
    ----------
    estimate : (..., H, W), expected counts of the short exposure
    reference_counts : (..., H, W), counts of the long exposure, independent of the estimate's
    scale : short over long exposure, broadcast against the frames
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    float
        Mean squared error over the mean count of the short exposure; NaN where nothing was
        counted.
    """
    valid = _valid(np.shape(estimate), mask)
    reference = np.asarray(reference_counts, np.float64)
    expected = reference * scale
    error = (np.asarray(estimate, np.float64) - expected) ** 2 - reference * np.square(scale)
    mean = float(expected[valid].mean())
    return float(error[valid].mean()) / mean if mean > 0 else float("nan")


def poisson_deviance(
    estimate: np.ndarray,
    counts: np.ndarray,
    mask: np.ndarray | None = None,
    floor: float = 1e-3,
) -> float:
    """Return the mean Poisson deviance of held-out counts; 1 is the best at many counts.

    Where an estimate is 0, one count would make the deviance infinite. Estimates are
    therefore raised to ``floor`` times the frame's mean estimate, for all methods alike.

    Parameters
    ----------
    estimate : (..., H, W), expected counts
    counts : (..., H, W), counts that the estimate has not seen
    mask : (H, W), nonzero where a pixel is invalid
    floor : least estimate, in mean estimates

    Returns
    -------
    float
        ``mean(2 (n log(n / estimate) - n + estimate))`` over valid pixels.
    """
    valid = _valid(np.shape(estimate), mask)
    expected = np.asarray(estimate, np.float64)[valid]
    n = np.asarray(counts, np.float64)[valid]
    least = max(floor * float(expected.mean()), 1e-12) if expected.size else 1e-12
    return float(deviance(n, np.maximum(expected, least)).mean()) if n.size else 0.0


def deviance_ratio(
    estimate: np.ndarray, counts: np.ndarray, mask: np.ndarray | None = None
) -> float:
    """Return the Poisson deviance of held-out counts per degree of freedom.

    The deviance of few counts is not 1 for a right estimate: 1.15 at one count, 0.09 at a
    hundredth. So the mean deviance is divided by its expectation if the estimate were the
    truth. The truth scores 1 at any count level, and what exceeds 1 is misfit: of structure
    that is missing, or of noise that is left.

    Parameters
    ----------
    estimate : (..., H, W), expected counts
    counts : (..., H, W), counts that the estimate has not seen
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    float
        NaN where nothing is expected.
    """
    valid = _valid(np.shape(estimate), mask)
    expectation = expected_deviance(np.asarray(estimate, np.float64)[valid])[0]
    total = float(expectation.sum())
    if total <= 0:
        return float("nan")
    return poisson_deviance(estimate, counts, mask) * expectation.size / total


def unexplained_deviance(
    estimate: np.ndarray,
    counts: np.ndarray,
    sigma: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the deviance of held-out counts that neither their noise nor error bars explain.

    Parameters
    ----------
    estimate : (H, W), expected counts
    counts : (H, W), counts that the estimate has not seen
    sigma : (H, W) standard error of the estimate, counts; None: it states none
    mask : (H, W), nonzero where a pixel is invalid

    Returns
    -------
    tuple of float
        Per degree of freedom, 0 if the estimate and its error bars are right; and over the
        standard deviation that the counts' own noise gives it. NaN where nothing is expected.
    """
    valid = _valid(np.shape(estimate), mask)
    expected = np.asarray(estimate, np.float64)[valid]
    mean, variance = expected_deviance(expected)
    total, spread = float(mean.sum()), float(np.sqrt(variance.sum()))
    if total <= 0:
        return float("nan"), float("nan")
    stated = 0.0
    if sigma is not None:
        stated = float(added_deviance(expected, np.asarray(sigma, np.float64)[valid] ** 2).sum())
    excess = deviance_ratio(estimate, counts, mask) - 1 - stated / total
    return excess, excess * total / spread


def flux_ratio(estimate: np.ndarray, counts: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the estimate's total over that of the counts, of valid pixels; NaN if those are 0."""
    valid = _valid(np.shape(estimate), mask)
    total = float(np.sum(counts, where=valid, dtype=np.float64))
    found = float(np.sum(estimate, where=valid, dtype=np.float64))
    return found / total if total > 0 else float("nan")


def line_contrast(image: np.ndarray, column: int, half_width: int = 4, away: int = 10) -> float:
    """Return how much brighter a vertical line is than both of its sides.

    Parameters
    ----------
    image : (H, W), counts or rate
    column : middle of the line
    half_width : pixels on either side that belong to the line
    away : pixels from the middle to where each side begins; it is as wide as the line

    Returns
    -------
    float
        (mean of the line - mean of the sides) / mean of the sides; NaN where these have nothing.
    """
    width = 2 * half_width + 1
    line = image[:, column - half_width : column + half_width + 1].mean(dtype=np.float64)
    left = image[:, column - away - width : column - away]
    right = image[:, column + away + 1 : column + away + 1 + width]
    sides = np.concatenate([left, right], axis=1).mean(dtype=np.float64)
    return float((line - sides) / sides) if sides else float("nan")


def spot_intensities(
    image: np.ndarray, spots: np.ndarray, half_width: int = 2, border: int = 3
) -> np.ndarray:
    """Integrate spots in a square, less the mean of its border.

    Parameters
    ----------
    image : (H, W), counts
    spots : (n, 2) integer rows and columns, away from the frame's edge
    half_width : pixels on either side of a spot that belong to it
    border : width of the border, pixels

    Returns
    -------
    numpy.ndarray
        (n,) float64, counts.
    """
    outer = half_width + border
    out = np.empty(len(spots))
    for i, (row, col) in enumerate(spots):
        box = np.asarray(
            image[row - outer : row + outer + 1, col - outer : col + outer + 1], np.float64
        )
        inner = np.zeros(box.shape, bool)
        inner[border:-border, border:-border] = True
        background = float(np.mean(box[~inner]))
        out[i] = box[inner].sum() - background * inner.sum()
    return out
