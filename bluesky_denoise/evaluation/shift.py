"""Whether the audit flags what goes wrong on frames of other samples and detectors."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.audit import audit_rate
from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.frame_sets import (
    FrameSet,
    Track,
    middle,
    rng_of,
    scored_frames,
    spread,
)
from bluesky_denoise.evaluation.methods import NamedDenoiser
from bluesky_denoise.evaluation.metrics import unexplained_deviance
from bluesky_denoise.frames import expected_sigma
from bluesky_denoise.photons.thinning import thin

__all__ = ["ShiftScore", "gaussian_variance", "shift_scores"]

SMEARED_PX = (2.0, 4.0, 8.0, 16.0)
"""Widths of the Gaussians that play a denoiser that has gone wrong."""
FAILED = 0.1
"""Deviance per degree of freedom, on photons that neither the estimate nor the audit has seen,
beyond what their noise and the error bars of the estimate explain, from which an estimate is
called a failure."""
SURE_Z = 5.0
"""Standard deviations that this must be above 0: what nobody could see is no failure."""
GOOD = 0.02
"""The same, below which an estimate is right, if no block stands out either."""
BLOCK_PX, MOST_Z = 16, 4.0
"""Side of the blocks, and by how much the counts of one may be off, standard deviations."""


@dataclass(frozen=True)
class ShiftScore:
    """How estimates of one series fared in the audit."""

    set: str
    held_out: str
    estimates: str
    """The denoiser's own, or ``smeared`` ones."""
    failures: int
    flagged: int
    """Of the failures."""
    right: int
    alarms: int
    """Flagged among the right ones."""


def shift_scores(
    frames: FrameSet,
    denoiser: NamedDenoiser,
    track: Track,
    *,
    most_frames: int = 4,
    most_shape: tuple[int, int] = (320, 487),
) -> list[ShiftScore]:
    """Audit estimates of measured frames, and look at a third part of the photons who was right.

    Photons are dealt into three parts: one is denoised, one is for the audit, one decides
    whether the estimate has failed: whether it errs by more than its error bars say. Noise that
    an estimate keeps, and states, is no failure. Gaussians that smear what is there play
    failures, since a denoiser may have none of its own; their error bars follow from the counts.
    Of a known series, only frames that are scored are looked at.
    """
    window = middle(frames.mask.shape, most_shape)
    mask = frames.mask[window]
    tally: dict[str, np.ndarray] = {}
    for i in track(spread(scored_frames(frames), most_frames), f"{frames.name}, audit"):
        counts = np.where(mask, 0, frames.counts[i][window]).astype(np.int64)
        rng = rng_of(frames.name, i)
        seen, others = thin(counts, 1 / 3, rng)
        held_out, judge = thin(others, 0.5, rng)
        found = denoiser.denoise(seen, 1.0, mask)
        estimates = [(denoiser.name, found.rate, expected_sigma(found))]
        for width in SMEARED_PX:
            sigma = np.sqrt(gaussian_variance(seen, width, mask))
            estimates.append(("smeared", gaussian(seen, width, mask), sigma))
        for name, rate, sigma in estimates:
            estimate = np.where(mask, 0, rate).astype(np.float64)
            known = None if sigma is None else np.where(mask, 0, sigma).astype(np.float64)
            failed, right = _judged(judge, estimate, known, mask)
            shown = np.where(mask, np.nan, estimate)
            flagged = not audit_rate(held_out, shown, mask, seen=seen, sigma=known).ok
            add = np.array([failed, failed and flagged, right, right and flagged], int)
            tally[name] = tally.get(name, 0) + add
    return [
        ShiftScore(frames.name, frames.known.held_out, name, *map(int, sums))
        for name, sums in tally.items()
    ]


def gaussian_variance(counts: np.ndarray, sigma_px: float, mask: np.ndarray) -> np.ndarray:
    """Return the variance of a Gaussian average of photon counts: (H, W), counts squared.

    The squares of its weights are those of a Gaussian narrower by the square root of two.
    """
    return gaussian(counts, sigma_px / np.sqrt(2), mask) / (4 * np.pi * sigma_px**2)


def _judged(
    counts: np.ndarray, estimate: np.ndarray, sigma: np.ndarray | None, mask: np.ndarray
) -> tuple[bool, bool]:
    """Say whether counts that nobody has seen call an estimate failed, or right."""
    excess, z = unexplained_deviance(estimate, counts, sigma, mask)
    failed = excess > FAILED and z > SURE_Z
    height, width = (size - size % BLOCK_PX for size in counts.shape)
    shape = (height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    found, expected = (
        image[:height, :width].reshape(shape).sum((1, 3)) for image in (counts, estimate)
    )
    # What was seen had as many photons: the sum of an estimate is no noisier than that.
    off = np.abs(found - expected) / np.sqrt(np.maximum(2 * expected, 1))
    return failed, excess < GOOD and off.max(initial=0.0) < MOST_Z
