"""Intensities of weak satellites by `measure_roi`: slope against the truth, and pulls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.evaluation.methods import SupportsDenoise
from bluesky_denoise.roi import ROI, measure_roi
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

__all__ = ["RegionScore", "region_scores"]

SHAPE, BOX = (46, 46), ROI((8, 38), (8, 38), background_px=4)
BACKGROUNDS = (0.02, 0.2, 2.0)
"""Counts per pixel."""
HEIGHTS = (0.1, 0.3, 1.0, 5.0)
"""Counts in the brightest pixel of the satellite."""
SIGMAS = (1.2, 2.0, 3.0)
"""Standard deviations, pixels; the other axis is up to a quarter more or less."""


@dataclass(frozen=True)
class RegionScore:
    """How intensities of one kind compare with the truth, over all satellites."""

    intensity: str
    """``measure_roi``; ``raw sum``, less the background around; ``denoised sum``, likewise."""
    regions: int
    slope: float
    """Of a weighted straight line through found against true counts; 1 is right."""
    slope_error: float
    pull_mean: float
    """Of (found - true) / stated error; NaN where no error is stated."""
    pull_width: float
    """Standard deviation of the same; 1 is right."""
    covered: dict[str, float]
    """Share of truths within the stated 68, 90 and 95 % intervals; empty where none is stated."""
    error_ratio: float
    """Root mean square error over that of the raw sum; below 1 is better."""


CONFIDENCES = {"68": 1.0, "90": 1.6449, "95": 1.9600}
"""Percent -> half width in standard errors (68.3 % for the first)."""


def region_scores(
    denoiser: SupportsDenoise, track: Track, *, draws: int = 8, seed: int = 3
) -> list[RegionScore]:
    """Measure satellites of 0.1 to 5 counts over 0.02 to 2, in regions of 30 x 30 pixels.

    Parameters
    ----------
    denoiser : shows `measure_roi` where to sum
    track : shows progress
    draws : satellites of each of 36 kinds
    seed : of shapes and photons
    """
    rng = np.random.default_rng(seed)
    kinds = [(b, h, s) for b in BACKGROUNDS for h in HEIGHTS for s in SIGMAS]
    rows = []
    for kind in track(kinds, "satellites"):
        rows += [_satellite(denoiser, *kind, rng) for _ in range(draws)]
    truth, found, error, plain, known, denoised = np.array(rows).T
    reference = ((plain - truth) / known) ** 2
    out = []
    for name, column in (("measure_roi", found), ("raw sum", plain), ("denoised sum", denoised)):
        slope, slope_error = _slope(truth, column, known)
        pulls = (column - truth) / error if name == "measure_roi" else np.full(len(truth), np.nan)
        stated = np.isfinite(pulls).all()
        out.append(
            RegionScore(
                name,
                len(truth),
                slope,
                slope_error,
                float(pulls.mean()),
                float(pulls.std()),
                {c: float((np.abs(pulls) <= z).mean()) for c, z in CONFIDENCES.items() if stated},
                float(np.sqrt((((column - truth) / known) ** 2).mean() / reference.mean())),
            )
        )
    return out


def _satellite(
    denoiser: SupportsDenoise,
    background: float,
    height: float,
    sigma: float,
    rng: np.random.Generator,
) -> Sequence[float]:
    """Return true, found, its error, plain sum, its true error, denoised sum; counts."""
    other = sigma * rng.uniform(0.8, 1.25)
    row, col = 22.5 + rng.uniform(-4, 4, 2)
    truth = height * 2 * np.pi * sigma * other
    rate = gaussian_peak(SHAPE, Peak(row, col, truth, sigma, other)) + background
    counts = rng.poisson(rate)
    found = measure_roi(counts, 1.0, BOX, denoiser, rng=rng)
    inside, whole = 30**2, 38**2
    core, total = counts[8:38, 8:38].sum(), counts[4:42, 4:42].sum()
    plain = core - (total - core) * inside / (whole - inside)
    variance = rate[8:38, 8:38].sum() + inside**2 / (whole - inside) * background
    denoised = found.denoised_sum - found.background * inside
    return truth, found.intensity, found.intensity_error, plain, np.sqrt(variance), denoised


def _slope(truth: np.ndarray, found: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    model = np.stack([truth, np.ones(len(truth))], 1) / error[:, None]
    covariance = np.linalg.inv(model.T @ model)
    return float((covariance @ model.T @ (found / error))[0]), float(np.sqrt(covariance[0, 0]))
