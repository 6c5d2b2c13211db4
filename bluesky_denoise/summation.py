"""Which photons of a region are summed, and with which weight: chosen by other photons."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.extraction import (
    Ellipse,
    find_ellipse,
    linear_coefficients,
    outside_is_quiet,
    weights,
    widest,
)
from bluesky_denoise.poisson import tail_z
from bluesky_denoise.region import Crop

__all__ = ["FOLDS", "LEAST_Z", "Summation", "choose_summation", "plain_summation", "significance"]

FOLDS = 4
"""Parts that photons are dealt into; the profile of each part comes from the others."""
LEAST_Z = 5.0
"""Significance of a peak from which the denoised frame is believed to show it."""
REACHES = (2.8, 3.2, 4.0, 6.0)
"""Sizes of the ellipse that are tried, standard deviations."""
TAIL = 0.02
"""Share of a peak's photons that may lie outside of 2.8 standard deviations unforeseen."""


@dataclass(frozen=True, eq=False)
class Summation:
    """How the photons of one part are summed."""

    coefficients: np.ndarray
    """(h, w) float64, of each pixel's counts, background subtraction included."""
    profile: np.ndarray | None
    """(h, w) share of the peak that valid pixels see; None for the plain sum."""
    covered: float
    """Sum of the profile; 1 for the plain sum."""


def plain_summation(crop: Crop) -> Summation | None:
    """Sum over the region less the mean of the frame around it."""
    inside, around = crop.inside, crop.around
    if not inside.any():
        return None
    coefficients = inside.astype(np.float64)
    if crop.frame.any():
        if not around.any():
            return None
        coefficients -= around * (inside.sum() / around.sum())
    return Summation(coefficients, None, 1.0)


def significance(counts: np.ndarray, ellipse: Ellipse, inside: np.ndarray, level: float) -> float:
    """Say by how much the core of an ellipse exceeds a level, standard deviations."""
    core = inside & (ellipse.distance(counts.shape) < 1.6)
    return float(tail_z(counts[core].sum(), max(level, 0.0) * core.sum()))


def choose_summation(crop: Crop, others: np.ndarray, expected: np.ndarray) -> Summation | None:
    """Choose the ellipse for one part from the photons of the others.

    Parameters
    ----------
    others : (h, w) photons of the other parts
    expected : (h, w) what they say of the whole exposure, denoised, counts

    Returns
    -------
    Summation or None
        None where the plain sum is to be taken.
    """
    inside, around = crop.inside, crop.around
    scale = FOLDS / (FOLDS - 1)
    level = float(others[around].mean())
    ellipse = find_ellipse(expected - float(expected[around].mean()), crop.region, crop.valid)
    if ellipse is None:
        return None
    ellipse = widest(ellipse, others, level, crop.region, inside)
    if significance(others, ellipse, inside, level) < LEAST_Z:
        return None
    flat = np.full(others.shape, level)
    noise = 1 / np.sqrt(max(float(others[around].sum()), 1.0))
    if not outside_is_quiet(others, flat, inside & (ellipse.distance(flat.shape) > 3), noise):
        return None
    profile = ellipse.profile(crop.region)
    known = profile * crop.valid
    core = weights(ellipse, REACHES[0], inside)
    strength = float((core * (others - level)).sum() / max((core * known).sum(), 0.05)) * scale
    best: tuple[float, Summation] | None = None
    plain = plain_summation(crop)
    for reach in REACHES:
        weight = weights(ellipse, reach, inside)
        coefficients = linear_coefficients(known, weight, (inside | around) * (1 - weight))
        if coefficients is None:
            continue
        variance = _variance(coefficients, known, strength, level * scale)
        risk = variance + (strength * TAIL * (REACHES[0] / reach) ** 2) ** 2
        if best is None or risk < best[0]:
            best = risk, Summation(coefficients, known, float(known.sum()))
    whole = _variance(plain.coefficients, known, strength, level * scale)
    if best is None or (known.sum() > 0.99 and whole < best[0]):
        return None
    return best[1]


def _variance(coefficients: np.ndarray, known: np.ndarray, strength: float, level: float) -> float:
    return float((coefficients**2 * (max(strength, 0.0) * known + level)).sum())
