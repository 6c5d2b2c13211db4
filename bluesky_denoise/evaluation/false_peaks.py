"""False peaks: what is found in denoised frames that hold no signal."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.detection import PEAK_PX, estimate
from bluesky_denoise.evaluation.frame_sets import Track
from bluesky_denoise.evaluation.matched_filter import filtered_z, find_peaks
from bluesky_denoise.evaluation.methods import Method

__all__ = ["FalsePeaks", "false_peaks"]

FLAT_LEVELS = (0.05, 0.5, 5.0, 50.0)
"""Counts per pixel of signal-free frames."""


@dataclass(frozen=True)
class FalsePeaks:
    """What one method makes of signal-free frames."""

    method: str
    counts_per_pixel: float
    threshold: float
    """Standard deviations of the raw matched filter."""
    megapixels: float
    per_megapixel: float
    error: float
    """Square root of the number found, or 1, per megapixel."""


def false_peaks(
    methods: Sequence[Method],
    track: Track,
    *,
    side_px: int = 512,
    frames: int = 4,
    thresholds: Sequence[float] = (3.5, 4.5),
    seed: int = 9,
) -> list[FalsePeaks]:
    """Count peaks in denoised frames of pure Poisson noise, at the raw filter's threshold.

    Parameters
    ----------
    methods : what is compared; the slow ones get a quarter of the first frame
    track : shows progress
    side_px, frames : of the frames, for each level of counts
    thresholds : standard deviations of the matched filter on the raw frame
    seed : of the photons
    """
    counted: dict[tuple[str, float, float], list[float]] = {}
    area: dict[tuple[str, float], float] = {}
    jobs = [(level, i) for level in FLAT_LEVELS for i in range(frames)]
    edge = int(4 * PEAK_PX)
    for level, i in track(jobs, "signal-free frames"):
        rng = np.random.default_rng([seed, round(100 * level), i])
        whole = rng.poisson(level, (side_px, side_px))
        for method in methods:
            if method.slow and i > 0:
                continue
            counts = whole[: side_px // 2, : side_px // 2] if method.slow else whole
            image = estimate(method, counts, np.full(counts.shape, level))
            z = filtered_z(image, counts, PEAK_PX)[edge:-edge, edge:-edge]
            place = (method.name, level)
            area[place] = area.get(place, 0.0) + z.size / 1e6
            for threshold in thresholds:
                peaks = find_peaks(z, threshold, int(2 * PEAK_PX))
                counted.setdefault((*place, threshold), []).append(len(peaks))
    return [
        FalsePeaks(
            name,
            level,
            threshold,
            area[name, level],
            float(sum(numbers)) / area[name, level],
            float(np.sqrt(max(sum(numbers), 1))) / area[name, level],
        )
        for (name, level, threshold), numbers in counted.items()
    ]
