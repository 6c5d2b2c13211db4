"""Simulated frames with known peaks: intensity, position and width against exposure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bluesky_denoise.evaluation.coverage import HALF_WIDTHS
from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import poisson_deviance
from bluesky_denoise.evaluation.peak_fit import PeakShapes, fit_intensity, fit_peaks
from bluesky_denoise.evaluation.regions import measure_expected
from bluesky_denoise.frames import SupportsDenoise
from bluesky_denoise.regions.peak_shape import FWHM
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

__all__ = [
    "CLASSES",
    "EXPOSURES",
    "PeakScore",
    "PeakStudy",
    "peak_scores",
    "study_peaks",
]

CLASSES = {"sharp": (1.2, 1.2), "round": (2.5, 2.5), "long": (1.6, 4.0)}
"""Standard deviations along rows and columns, pixels."""
EXPOSURES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Times that a frame is exposed; the background is 1 count a pixel at 1."""
STRENGTH = 10.0
"""Of every peak at exposure 1: its counts over the square root of those of the background
under it, ``S / sqrt(4 pi sigma_row sigma_col B)``; it grows with the root of the exposure."""
SIDE, SPACING, HALF = 192, 64, 14
"""Pixels of a frame, between two peaks, and from the middle to the edge of what is fitted."""
MEASURED = "measure_roi"
OPTIMAL, FITTED, SUMMED = "raw, shape known", "raw, fitted", "raw, box sum"


@dataclass(frozen=True, eq=False)
class PeakStudy:
    """What was measured of every peak, by who measured it."""

    truth: dict[tuple[str, float], PeakShapes]
    """Class and exposure -> true peaks, each (n,); positions in the image that is fitted."""
    intensity: dict[tuple[str, str, float], np.ndarray] = field(default_factory=dict)
    """Who, class, exposure -> (m,) counts found; the first m peaks, frame by frame."""
    error: dict[tuple[str, str, float], np.ndarray] = field(default_factory=dict)
    """The same -> (m,) standard errors, where some are stated."""
    shapes: dict[tuple[str, str, float], PeakShapes] = field(default_factory=dict)
    """The same -> fitted shapes, of methods that yield an image; those that `measure_roi` tells,
    NaN where it does not."""
    pulls: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)
    """Class, exposure -> (m, 4) centres and widths of `measure_roi`: errors over stated errors."""
    expected: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)
    """Class, exposure -> (m,) counts that `measure_roi` finds on average with the weights that it
    chose: its bias, without the noise of the photons that are summed."""
    sums: dict[tuple[str, str, float], np.ndarray] = field(default_factory=dict)
    """Method, class, exposure -> (m,) sums over pixels of the peak, less the true background."""


@dataclass(frozen=True)
class PeakScore:
    """One method on peaks of one class at one exposure; medians and means over peaks."""

    method: str
    shape: str
    strength: float
    """S / sqrt(B), as in `STRENGTH`."""
    peaks: int
    intensity_error: float
    """Root mean square of (found - true) / true, errors beyond 1 counted as 1."""
    intensity_bias: float
    """Mean of the same, none cut off; for `measure_roi`, of `PeakStudy.expected`."""
    bias_error: float
    """Standard error of that mean."""
    sum_bias: float
    """Sum of the image over the peak, less that of the raw frame, over the true counts."""
    shift_row: float
    """Median shift of the centre along rows, pixels."""
    shift_col: float
    """The same along columns."""
    position_error: float
    """Root mean square distance of the centre from the truth, pixels."""
    width_row: float
    """Median of the full width at half maximum over the true one, along rows."""
    width_col: float
    """The same along columns."""
    covered: tuple[float, ...] = ()
    """Share of true centres and widths within 68, 90 and 95 % intervals, where some are stated."""


def study_peaks(
    methods: Sequence[Method],
    denoiser: SupportsDenoise | None,
    track: Track,
    *,
    frames: int = 20,
    slow_frames: int = 4,
    seed: int = 11,
) -> PeakStudy:
    """Expose frames of nine peaks each, and measure every peak in every way.

    Parameters
    ----------
    methods : images that are fitted; ``raw`` among them is the fit that is optimal
    denoiser : shows `measure_roi` where to sum; None leaves that out
    track : shows progress
    frames, slow_frames : for each exposure; `measure_roi` gets three times as many of the least
    seed : of positions and photons
    """
    study = PeakStudy({})
    for exposure in track(EXPOSURES, "known peaks"):
        rng = np.random.default_rng([seed, round(100 * exposure)])
        truth: dict[str, list[tuple[float, ...]]] = {name: [] for name in CLASSES}
        images: dict[tuple[str, str], list[np.ndarray]] = {}
        regions: dict[str, list[tuple[float, ...]]] = {name: [] for name in CLASSES}
        # The least exposure has the largest errors, and a bias to be told all the same.
        for i in range(frames * 3 if exposure == EXPOSURES[0] else frames):
            rate, places = _frame(exposure, rng)
            counts = rng.poisson(rate)
            mask = np.zeros(counts.shape, bool)

            def judge(estimate: np.ndarray, rate: np.ndarray = rate) -> float:
                return poisson_deviance(estimate, rate)

            estimates = {
                m.name: m.estimate(counts, mask, judge)
                for m in methods
                if i < (slow_frames if m.slow else frames)
            }
            for shape, row, col, peak in places:
                window = np.s_[row - HALF : row + HALF + 1, col - HALF : col + HALF + 1]
                truth[shape].append(peak)
                for name, estimate in estimates.items():
                    images.setdefault((name, shape), []).append(estimate[window])
                if denoiser is not None:
                    regions[shape].append(_measure(counts, rate, row, col, peak, denoiser))
        for shape, peaks in truth.items():
            known = PeakShapes(*(np.array(x) for x in zip(*peaks, strict=True)))
            study.truth[shape, exposure] = known
            for method in methods:
                stack = np.stack(images[method.name, shape])
                _measure_images(study, method.name, shape, exposure, stack)
            if denoiser is not None:
                _keep_regions(study, shape, exposure, np.array(regions[shape]))
    return study


def _frame(exposure: float, rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Return expected counts, and class, middle and true shape of each peak."""
    rate = np.full((SIDE, SIDE), exposure)
    places = []
    kinds = rng.permuted(np.repeat(list(CLASSES), SIDE**2 // SPACING**2 // len(CLASSES)))
    sites = [(r, c) for r in range(SIDE // SPACING) for c in range(SIDE // SPACING)]
    for kind, (r, c) in zip(kinds, sites, strict=True):
        row, col = (SPACING * x + SPACING // 2 + int(rng.integers(-6, 7)) for x in (r, c))
        down, right = rng.uniform(-0.5, 0.5, 2)
        sigmas = CLASSES[kind]
        photons = exposure * STRENGTH * np.sqrt(4 * np.pi * sigmas[0] * sigmas[1])
        rate = rate + gaussian_peak(rate.shape, Peak(row + down, col + right, photons, *sigmas))
        peak = (photons, HALF + down, HALF + right, *sigmas, exposure)
        places.append((str(kind), row, col, peak))
    return rate, places


def _measure(
    counts: np.ndarray,
    rate: np.ndarray,
    row: int,
    col: int,
    peak: tuple[float, ...],
    denoiser: SupportsDenoise,
) -> tuple[float, ...]:
    """Return intensity, error, what is expected, and the shape with its errors."""
    half_row, half_col = (int(np.ceil(3.5 * sigma)) + 2 for sigma in peak[3:5])
    roi = ROI((row - half_row, row + half_row + 1), (col - half_col, col + half_col + 1), 4)
    v, expected = measure_expected(counts, rate, roi, denoiser)
    centre = v.center_row - row + HALF, v.center_col - col + HALF  # in the image that is fitted
    widths = v.width_row / FWHM, v.width_col / FWHM
    errors = v.center_row_error, v.center_col_error
    width_errors = v.width_row_error / FWHM, v.width_col_error / FWHM
    return v.intensity, v.intensity_error, expected, *centre, *widths, *errors, *width_errors


def _keep_regions(study: PeakStudy, shape: str, exposure: float, regions: np.ndarray) -> None:
    """Keep what `_measure` returned, (m, 11)."""
    known, place = study.truth[shape, exposure], (MEASURED, shape, exposure)
    study.intensity[place], study.error[place], study.expected[shape, exposure] = regions.T[:3]
    found, errors = regions[:, 3:7], regions[:, 7:]
    row, col, tall, wide = found.T
    study.shapes[place] = PeakShapes(regions[:, 0], row, col, tall, wide, known.background)
    truth = np.stack([known.row, known.col, known.sigma_row, known.sigma_col], 1)
    study.pulls[shape, exposure] = (found - truth) / errors


def _first(known: PeakShapes, m: int) -> PeakShapes:
    return PeakShapes(*(x[:m] for x in vars(known).values()))


def _measure_images(
    study: PeakStudy, name: str, shape: str, exposure: float, images: np.ndarray
) -> None:
    known = _first(study.truth[shape, exposure], len(images))
    place = (name, shape, exposure)
    found = fit_peaks(images, known)
    study.shapes[place] = found
    study.intensity[place] = found.intensity
    rows, cols = (np.arange(images.shape[1])[:, None], np.arange(images.shape[2])[None, :])
    far_row = np.abs(rows - HALF) <= np.ceil(3.5 * CLASSES[shape][0])
    box = far_row & (np.abs(cols - HALF) <= np.ceil(3.5 * CLASSES[shape][1]))
    ring = ~box
    level = images[:, ring].mean(1)
    study.sums[place] = images[:, box].sum(1) - box.sum() * exposure
    if name == "raw":
        study.intensity[OPTIMAL, shape, exposure] = fit_intensity(images, known)
        study.intensity[SUMMED, shape, exposure] = images[:, box].sum(1) - box.sum() * level


def relative_error(study: PeakStudy, who: str, shape: str, exposure: float) -> np.ndarray:
    """Return (found - true) / true: (m,)."""
    found = study.intensity[who, shape, exposure]
    return found / study.truth[shape, exposure].intensity[: len(found)] - 1


def root_mean_square(errors: np.ndarray) -> float:
    """Average relative errors, those beyond 1 counted as 1: a fit that ran away is no worse."""
    return float(np.sqrt((np.clip(errors, -1, 1) ** 2).mean()))


def peak_scores(study: PeakStudy) -> list[PeakScore]:
    """Sum up a study: one score for each method, class and exposure."""
    scores = []
    for (who, shape, exposure), found in study.intensity.items():
        known = _first(study.truth[shape, exposure], len(found))
        error = relative_error(study, who, shape, exposure)
        place = (who, shape, exposure)
        fitted = study.shapes.get(place)
        bias = np.nan
        if place in study.sums:
            raw = study.sums["raw", shape, exposure][: len(found)]
            bias = float(((study.sums[place] - raw) / known.intensity).mean())
        biases = error
        if who == MEASURED:
            biases = study.expected[shape, exposure] / known.intensity - 1
        shift, spread, widths = (np.nan, np.nan), np.nan, (np.nan, np.nan)
        if fitted is not None and np.isfinite(fitted.row).any():
            away = np.stack([fitted.row - known.row, fitted.col - known.col])
            down, right = np.nanmedian(away, axis=1)
            shift = float(down), float(right)
            spread = float(np.sqrt(np.nanmean((away**2).sum(0))))
            widths = (
                float(np.nanmedian(fitted.sigma_row / known.sigma_row)),
                float(np.nanmedian(fitted.sigma_col / known.sigma_col)),
            )
        covered: tuple[float, ...] = ()
        if who == MEASURED:
            pulls = study.pulls[shape, exposure]
            pulls = np.abs(pulls[np.isfinite(pulls)])
            covered = tuple(float((pulls < z).mean()) for z in HALF_WIDTHS.values() if len(pulls))
        scores.append(
            PeakScore(
                _NAMES.get(who, who),
                shape,
                STRENGTH * float(np.sqrt(exposure)),
                len(found),
                root_mean_square(error),
                float(biases.mean()),
                float(biases.std(ddof=1) / np.sqrt(len(biases))),
                bias,
                *shift,
                spread,
                *widths,
                covered,
            )
        )
    return scores


_NAMES = {"raw": FITTED}
