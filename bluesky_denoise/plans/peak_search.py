"""Find a peak in a scan, and tell how likely such a one is by chance anywhere in it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from bluesky_denoise.errors import SettingsError

__all__ = ["LEAST_P_VALUE", "PeakCandidate", "search_peak"]

_WIDTHS_STEPS = (0.6, 1.0, 1.6, 2.5, 4.0)
"""Widths that are tried, standard deviations in steps of the scan."""
_TRIALS = 20_000
_FEWEST_POINTS = 5
_FARTHEST_STEPS = 1.5
"""A peak is sought so near to a usable point."""
_LEAST_SHARE = 0.2
"""Of a peak that is seen whole, beside a line: less of a wide one is nearly a parabola, of which
neither position nor height can be told."""
LEAST_P_VALUE = 1 / (1 + _TRIALS)
"""No chance below this can be told."""


@dataclass(frozen=True)
class PeakCandidate:
    """The most significant peak of a scan."""

    position: float
    """Its centre, in the unit of the motor."""
    width: float
    """Its standard deviation, in the unit of the motor; one of those that were tried."""
    height: float
    """Counts / s above the straight line under it."""
    height_error: float
    """Standard deviation of the height, counts / s."""
    significance: float
    """Height over its error under the hypothesis of no peak."""
    p_value: float
    """Chance of such a significance anywhere in a scan of this length without a peak."""


def search_peak(
    positions: ArrayLike, intensities: ArrayLike, errors: ArrayLike
) -> PeakCandidate | None:
    """Find the most significant peak, with the chance that there is none.

    Gaussians of several widths, at each point and between the points, are fitted with a
    straight line under them: a background that drifts is no peak. Without a peak all points
    have the same error, so the mean variance stands for each: errors that are themselves from
    few counts are small where the counts happen to be low, and would favour chance peaks.

    Parameters
    ----------
    positions : (n,), evenly spaced, in the unit of the motor
    intensities : (n,), counts / s; NaN where there is none
    errors : (n,), standard deviations, counts / s

    Returns
    -------
    PeakCandidate or None
        None where fewer than 5 points can be used.

    Raises
    ------
    SettingsError
        If the three are not as long as each other.

    Notes
    -----
    The chance is from 20,000 simulated scans without a peak, searched in the same way:
    the look-elsewhere effect of all positions and widths is in it.
    """
    x, y, sigma = (np.asarray(a, dtype=float) for a in (positions, intensities, errors))
    if not (x.ndim == 1 and x.shape == y.shape == sigma.shape):
        raise SettingsError(
            f"A scan with {x.shape} positions, {y.shape} intensities and {sigma.shape} errors; "
            "expected as many of each."
        )
    usable = np.isfinite(y) & np.isfinite(sigma)
    if usable.sum() < _FEWEST_POINTS:
        return None
    variance = float(np.mean(sigma[usable] ** 2))
    if not variance > 0:
        return None
    centres, widths, norms, templates = _templates(len(x), usable.tobytes())
    z = templates @ y[usable] / np.sqrt(variance)
    best = int(z.argmax())
    step = (x[-1] - x[0]) / (len(x) - 1)
    z_best = float(z[best])
    # (1 + k) / (1 + n): a chance is never reported as 0.
    null = _null(len(x), usable.tobytes())
    p_value = (1 + int((null >= z_best).sum())) / (1 + len(null))
    return PeakCandidate(
        position=float(x[0] + centres[best] * step),
        width=float(widths[best] * abs(step)),
        height=float(z_best * np.sqrt(variance) / norms[best]),
        height_error=float(np.sqrt(variance) / norms[best]),
        significance=z_best,
        p_value=p_value,
    )


@lru_cache(maxsize=32)
def _templates(n: int, usable: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centres and widths in steps, norms, all (m,), and templates.

    A template (n,) is what of a Gaussian of height 1 no straight line can be, over its norm.
    """
    at = np.flatnonzero(np.frombuffer(usable, bool))
    # Half steps; a peak must have a point on either side, to be told from a slope.
    grid = np.arange(1.0, n - 1.5, 0.5)
    centres, widths = (a.ravel() for a in np.meshgrid(grid, np.array(_WIDTHS_STEPS)))
    shapes = np.exp(-0.5 * ((at - centres[:, None]) / widths[:, None]) ** 2)
    line = np.linalg.qr(np.stack([np.ones(len(at)), at], axis=1))[0]  # (n, 2), orthonormal
    shapes -= (shapes @ line) @ line.T
    norms = np.linalg.norm(shapes, axis=1)
    # In a gap, where no point was measured, there is nothing to find.
    near = np.abs(centres[:, None] - at).min(axis=1) <= _FARTHEST_STEPS
    whole = np.sqrt(np.sqrt(np.pi) * widths)
    seen = near & (norms > _LEAST_SHARE * whole)
    return centres[seen], widths[seen], norms[seen], shapes[seen] / norms[seen, None]


@lru_cache(maxsize=32)
def _null(n: int, usable: bytes) -> np.ndarray:
    """Return the highest significance of each of many scans without a peak."""
    templates = _templates(n, usable)[3]
    rng = np.random.default_rng(0)
    highest = [
        (rng.standard_normal((1000, templates.shape[1])) @ templates.T).max(axis=1)
        for _ in range(_TRIALS // 1000)
    ]
    return np.concatenate(highest)
