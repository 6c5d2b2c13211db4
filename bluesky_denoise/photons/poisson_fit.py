"""Models fitted to counts by the likelihood of Poisson noise, many at once."""

from collections.abc import Callable

import numpy as np

__all__ = ["Model", "fit_poisson"]

STEPS = 25
LEAST = 1e-6
"""Counts; what a model expects is raised to this."""

Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Parameters (N, P) -> expected counts (N, pixels), and their derivatives (N, P, pixels)."""


def fit_poisson(
    counts: np.ndarray,
    model: Model,
    start: np.ndarray,
    bound: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the parameters under which counts are most likely.

    Fisher's scoring, damped where a step does not help. The noise is that of the model, so
    pixels with few or no counts are weighed as they should be.

    Parameters
    ----------
    counts : (N, pixels), counts or expected counts, >= 0
    model : see `Model`
    start : (N, P), where to begin
    bound : called with the parameters tried and those before, both (N, P); returns the first
        within their limits
    steps : steps that are taken

    Returns
    -------
    parameters : (N, P)
    information : (N, P, P), Fisher's; its inverse is the covariance of the parameters

    References
    ----------
    Cash (1979), doi:10.1086/156922 (parameters from few counts)
    """
    n = np.asarray(counts, np.float64)
    found = np.asarray(start, np.float64)
    damp = np.full(len(n), 0.1)
    expected, slopes = _positive(model(found))
    best = _likelihood(n, expected)
    for _ in range(steps):
        tried = bound(found + _step(n, expected, slopes, damp), found)
        new, new_slopes = _positive(model(tried))
        likelihood = _likelihood(n, new)
        better = likelihood >= best
        best = np.where(better, likelihood, best)
        damp = np.clip(np.where(better, damp * 0.3, damp * 10), 1e-6, 1e6)
        found = np.where(better[:, None], tried, found)
        expected = np.where(better[:, None], new, expected)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
    return found, _information(expected, slopes)


def _positive(values: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(values[0], LEAST), values[1]


def _likelihood(n: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (n * np.log(expected) - expected).sum(1)


def _information(expected: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    return (slopes / expected[:, None]) @ slopes.transpose(0, 2, 1)


def _step(n: np.ndarray, expected: np.ndarray, slopes: np.ndarray, damp: np.ndarray) -> np.ndarray:
    information = _information(expected, slopes)
    uphill = (slopes @ ((n - expected) / expected)[:, :, None])[:, :, 0]
    scale = np.sqrt(np.maximum(np.einsum("npp->np", information), 1e-12))
    scaled = information / (scale[:, :, None] * scale[:, None, :])
    scaled += (damp[:, None, None] + 1e-9) * np.eye(scale.shape[1])
    step = np.linalg.solve(scaled, (uphill / scale)[:, :, None])[:, :, 0] / scale
    return np.clip(step, -1e9, 1e9)
