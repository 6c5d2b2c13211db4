"""Whether the audit flags what goes wrong on frames of other samples and detectors."""

from dataclasses import dataclass

import numpy as np

from bluesky_denoise.audit import audit_rate
from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.frame_sets import FrameSet, Track, middle, rng_of, spread
from bluesky_denoise.evaluation.methods import SupportsDenoise
from bluesky_denoise.evaluation.metrics import deviance_ratio
from bluesky_denoise.thinning import thin

__all__ = ["ShiftScore", "shift_scores"]

SMEARED_PX = (2.0, 4.0, 8.0, 16.0)
"""Widths of the Gaussians that play a denoiser that has gone wrong."""
FAILED = 1.1
"""Deviance per degree of freedom, on photons that neither the estimate nor the audit has
seen, from which an estimate is called a failure."""
GOOD = 1.02
"""The same, below which it is called right."""


@dataclass(frozen=True)
class ShiftScore:
    """How estimates of one series fared in the audit."""

    set: str
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
    denoiser: SupportsDenoise,
    track: Track,
    *,
    most_frames: int = 4,
    most_shape: tuple[int, int] = (320, 487),
) -> list[ShiftScore]:
    """Audit estimates of measured frames, and look at a third part of the photons who was right.

    Photons are dealt into three parts: one is denoised, one is for the audit, one decides
    whether the estimate has failed. Gaussians that smear what is there play failures, since a
    denoiser may have none of its own; their noise is small, so what they lack is structure.
    """
    window = middle(frames.mask.shape, most_shape)
    mask = frames.mask[window]
    tally: dict[str, list[int]] = {}
    for i in track(spread(range(len(frames.counts)), most_frames), f"{frames.name}, audit"):
        counts = np.where(mask, 0, frames.counts[i][window]).astype(np.int64)
        rng = rng_of(frames.name, i)
        seen, others = thin(counts, 1 / 3, rng)
        held_out, judge = thin(others, 0.5, rng)
        found = np.nan_to_num(denoiser.denoise(seen, 1.0, mask).rate).astype(np.float64)
        estimates = [(denoiser.name, found)]
        estimates += [("smeared", gaussian(seen, sigma, mask)) for sigma in SMEARED_PX]
        for name, estimate in estimates:
            ratio = deviance_ratio(estimate, judge, mask)
            verdict = audit_rate(held_out, np.where(mask, np.nan, estimate), mask, seen=seen)
            failed, right = ratio > FAILED, ratio < GOOD
            add = (failed, failed and not verdict.ok, right, right and not verdict.ok)
            before = tally.get(name, [0, 0, 0, 0])
            tally[name] = [a + int(b) for a, b in zip(before, add, strict=True)]
    return [ShiftScore(frames.name, name, *numbers) for name, numbers in tally.items()]
