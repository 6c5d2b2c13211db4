"""Intensities of weak satellites by `measure_roi`: slope against the truth, and pulls."""

import itertools
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.frames import SupportsDenoise
from bluesky_denoise.regions.region import cut
from bluesky_denoise.roi import ROI, ROIValues, values, weigh
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

__all__ = [
    "KINDS",
    "RegionScore",
    "Satellites",
    "measure_expected",
    "region_scores",
    "satellites",
    "score_regions",
]

SHAPE, BOX = (46, 46), ROI((8, 38), (8, 38), background_px=4)
KINDS = tuple(itertools.product((0.02, 0.2, 2.0), (0.1, 0.3, 1.0, 5.0), (1.2, 2.0, 3.0)))
"""Background, counts per pixel; counts in the brightest pixel of the satellite; standard
deviation, pixels: along the other axis it is up to a quarter more or less."""
CONFIDENCES = {"68": 1.0, "90": 1.6449, "95": 1.9600}
"""Percent -> half width in standard errors (68.3 % for the first)."""


@dataclass(frozen=True, eq=False)
class Satellites:
    """What was measured of satellites of one kind or more, counts, each (n,)."""

    truth: np.ndarray
    found: np.ndarray
    error: np.ndarray
    """As stated by `measure_roi`."""
    expected: np.ndarray
    """What `measure_roi` finds on average with the weights that it chose."""
    plain: np.ndarray
    """Raw sum less the background around."""
    plain_error: np.ndarray
    """Its true standard error."""
    denoised: np.ndarray
    """Sum of the denoised frame less the background."""


@dataclass(frozen=True)
class RegionScore:
    """How intensities of one kind compare with the truth, over all satellites."""

    intensity: str
    """``measure_roi``; ``raw sum``, less the background around; ``denoised sum``, likewise."""
    regions: int
    slope: float
    """Of a weighted straight line through found against true counts; 1 is right. That of
    `measure_roi` is of the counts expected with its weights: the bias without the noise."""
    slope_error: float
    """From the scatter about that line."""
    pull_mean: float
    """Of (found - true) / stated error; NaN where no error is stated."""
    pull_width: float
    """Standard deviation of the same; 1 is right."""
    covered: dict[str, float]
    """Share of truths within the stated 68, 90 and 95 % intervals; empty where none is stated."""
    error_ratio: float
    """Root mean square error over that of the raw sum; below 1 is better."""
    found_slope: float = np.nan
    """As ``slope``, of found counts for all."""
    found_slope_error: float = np.nan


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
    cells = [
        satellites(denoiser, background, height, sigma, draws, rng)
        for background, height, sigma in track(KINDS, "satellites")
    ]
    names = vars(cells[0])
    return score_regions(Satellites(*(np.concatenate([vars(c)[n] for c in cells]) for n in names)))


def score_regions(found: Satellites) -> list[RegionScore]:
    """Compare the intensities of satellites with the truth: measured, plain, and denoised."""
    truth, scale = found.truth, found.plain_error
    reference = np.mean(((found.plain - truth) / scale) ** 2)
    nothing = np.full(len(truth), np.nan)
    scores = []
    for name, counts, straight, error in (
        ("measure_roi", found.found, found.expected, found.error),
        ("raw sum", found.plain, found.plain, nothing),
        ("denoised sum", found.denoised, found.denoised, nothing),
    ):
        pulls = (counts - truth) / error
        stated = np.isfinite(pulls).all()
        scores.append(
            RegionScore(
                name,
                len(truth),
                *_slope(truth, straight, scale),
                float(pulls.mean()),
                float(pulls.std()),
                {c: float((np.abs(pulls) <= z).mean()) for c, z in CONFIDENCES.items() if stated},
                float(np.sqrt(np.mean(((counts - truth) / scale) ** 2) / reference)),
                *_slope(truth, counts, scale),
            )
        )
    return scores


def satellites(
    denoiser: SupportsDenoise,
    background: float,
    height: float,
    sigma: float,
    draws: int,
    rng: np.random.Generator,
) -> Satellites:
    """Draw and measure satellites of one of the `KINDS`."""
    rows = []
    inside, whole = 30**2, 38**2
    for _ in range(draws):
        other = sigma * rng.uniform(0.8, 1.25)
        row, col = 22.5 + rng.uniform(-4, 4, 2)
        truth = height * 2 * np.pi * sigma * other
        rate = gaussian_peak(SHAPE, Peak(row, col, truth, sigma, other)) + background
        counts = rng.poisson(rate)
        found, expected = measure_expected(counts, rate, BOX, denoiser, rng)
        core, total = counts[8:38, 8:38].sum(), counts[4:42, 4:42].sum()
        plain = core - (total - core) * inside / (whole - inside)
        variance = rate[8:38, 8:38].sum() + inside**2 / (whole - inside) * background
        denoised = found.denoised_sum - found.background * inside
        measured = truth, found.intensity, found.intensity_error, expected
        rows.append((*measured, plain, np.sqrt(variance), denoised))
    return Satellites(*np.array(rows).T)


def measure_expected(
    counts: np.ndarray,
    truth: np.ndarray,
    roi: ROI,
    denoiser: SupportsDenoise,
    rng: np.random.Generator | None = None,
) -> tuple[ROIValues, float]:
    """Measure a region of simulated counts, and say what is measured on average.

    Parameters
    ----------
    counts : (H, W) counts
    truth : (H, W) expected counts that they were drawn from
    roi, denoiser, rng : as for `measure_roi`; the exposure is 1 s

    Returns
    -------
    tuple
        What `measure_roi` returns; and the intensity that its weights have on average, counts.
    """
    weighing = weigh(cut(counts, 1.0, roi, None, roi.background_px), denoiser, rng=rng)
    return values(weighing), weighing.expected(truth)


def _slope(truth: np.ndarray, found: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Fit a weighted line; the slope's error comes from the scatter about it."""
    model = np.stack([truth, np.ones(len(truth))], 1) / error[:, None]
    gains = np.linalg.inv(model.T @ model) @ model.T
    line = gains @ (found / error)
    off = found / error - model @ line
    return float(line[0]), float(np.sqrt((gains[0] ** 2 * off**2).sum()))
