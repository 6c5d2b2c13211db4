"""The honest exposure ratio: how much less exposure gives the same error of a peak's intensity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.peaks import (
    CLASSES,
    EXPOSURES,
    OPTIMAL,
    SUMMED,
    PeakStudy,
    relative_error,
    root_mean_square,
)

__all__ = ["REFERENCES", "ExposureRatio", "exposure_needed", "exposure_ratios"]

RESAMPLES = 100
REFERENCES = {
    "raw counts, position and shape known": OPTIMAL,
    "raw counts, fitted with shape unknown": "raw",
    "raw counts, summed over a box": SUMMED,
}
"""How a reference is called -> who measures in `PeakStudy`."""


@dataclass(frozen=True)
class ExposureRatio:
    """How many times less exposure a method needs than a reference."""

    method: str
    reference: str
    """What the raw frame is measured by."""
    intensity_error: float
    """Relative error of a peak's intensity at which both are compared."""
    ratio: float
    """Exposure of the reference over that of the method, geometric mean over the classes of
    peaks; above 1 is a gain. 0 where the method never gets there."""
    low: float
    high: float
    """The ratio's 68 % interval, from resampled peaks."""
    width_bias: float
    """Largest of |width over the truth - 1| of the method's image, over classes and axes, at
    the exposures that it needs; NaN where it yields no image."""


def exposure_needed(exposures: np.ndarray, errors: np.ndarray, target: float) -> float:
    """Find the exposure at which an error has fallen to a target.

    Errors are interpolated along straight lines of their logarithms, and followed beyond
    the exposures tried as counting statistics would have it, with the inverse root, by a
    factor of 4 at most.

    Parameters
    ----------
    exposures : (n,), rising
    errors : (n,), > 0
    target : error

    Returns
    -------
    float
        Infinite where the error would not fall to the target.
    """
    x, y = np.log(exposures), np.log(np.maximum(errors, 1e-9))
    goal = np.log(target)
    if y[-1] > goal:
        beyond = x[-1] + 2 * (y[-1] - goal)
        return float(np.exp(beyond)) if beyond <= x[-1] + np.log(4) else float("inf")
    above = np.flatnonzero(y > goal)
    if not len(above):
        return float(np.exp(max(x[0] - 2 * (goal - y[0]), x[0] - np.log(4))))
    i = above[-1]
    return float(np.exp(x[i] + (y[i] - goal) / (y[i] - y[i + 1]) * (x[i + 1] - x[i])))


def exposure_ratios(
    study: PeakStudy, methods: Sequence[str], target: float = 0.12, seed: int = 0
) -> list[ExposureRatio]:
    """Compare the exposures at which each method and each reference reach the same error.

    Parameters
    ----------
    study : measured peaks
    methods : names; `measure_roi` among them is compared as well
    target : relative error of intensities, root mean square
    seed : of the resampling

    Returns
    -------
    list of ExposureRatio
    """
    rng = np.random.default_rng(seed)
    out = []
    for method in methods:
        for reference, who in REFERENCES.items():
            if who == method:
                continue
            ratio = _ratio(study, method, who, target, None)
            drawn = [_ratio(study, method, who, target, rng) for _ in range(RESAMPLES)]
            low, high = np.percentile(drawn, (16, 84))
            bias = _width_bias(study, method, target)
            out.append(
                ExposureRatio(method, reference, target, ratio, float(low), float(high), bias)
            )
    return out


def _errors(study: PeakStudy, who: str, shape: str, rng: np.random.Generator | None) -> np.ndarray:
    errors = []
    for exposure in EXPOSURES:
        each = relative_error(study, who, shape, exposure)
        if rng is not None:
            each = rng.choice(each, len(each))
        errors.append(root_mean_square(each))
    return np.array(errors)


def _ratio(
    study: PeakStudy, method: str, who: str, target: float, rng: np.random.Generator | None
) -> float:
    logs = []
    for shape in CLASSES:
        ours, theirs = (
            exposure_needed(np.array(EXPOSURES), _errors(study, name, shape, rng), target)
            for name in (method, who)
        )
        if not np.isfinite(ours):
            return 0.0
        logs.append(np.log(theirs / ours))
    return float(np.exp(np.mean(logs)))


def _width_bias(study: PeakStudy, method: str, target: float) -> float:
    biases = []
    for shape, sigmas in CLASSES.items():
        if (method, shape, EXPOSURES[0]) not in study.shapes:
            return float("nan")
        errors = _errors(study, method, shape, None)
        needed = exposure_needed(np.array(EXPOSURES), errors, target)
        for axis, name in enumerate(("sigma_row", "sigma_col")):
            ratios = [
                float(np.nanmedian(getattr(study.shapes[method, shape, t], name))) / sigmas[axis]
                for t in EXPOSURES
            ]
            at = np.log(min(needed, EXPOSURES[-1]))
            biases.append(abs(float(np.interp(at, np.log(EXPOSURES), ratios)) - 1))
    return max(biases)
