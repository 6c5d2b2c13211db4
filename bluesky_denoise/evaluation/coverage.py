"""Whether intervals hold the truth as often as they say, pixel by pixel."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.frame_sets import FrameSet, Track, middle, rng_of, spread
from bluesky_denoise.evaluation.neighbours import pairs
from bluesky_denoise.frames import SupportsDenoise
from bluesky_denoise.photons.thinning import thin
from bluesky_denoise.simulation.random_scenes import random_scene
from bluesky_denoise.simulation.scenes import diffraction_scene

__all__ = [
    "CONFIDENCES",
    "HALF_WIDTHS",
    "CoverageScore",
    "measured_coverage",
    "simulated_coverage",
]

CONFIDENCES = (0.68, 0.90, 0.95)
HALF_WIDTHS = {0.68: 0.9945, 0.90: 1.6449, 0.95: 1.9600}
"""Confidence -> half width of a normal interval, standard deviations."""
EDGES = (0.05, 0.15, 0.5, 1.5, 5.0, 15.0, 50.0, 150.0, 500.0)
"""Expected counts per pixel between which pixels are binned."""
LEAST_PIXELS = 500
"""A bin with fewer is left out."""
LEAST_REFERENCE = 10
"""Expected counts that a measured reference needs in a pixel, for its noise to be nearly normal."""
SELECTING = 0.2
"""Share of the reference's photons that says where these are: it is no part of the truth, for
pixels chosen by the truth that they are compared with would be those where its noise is high."""
SELECTING_PX = 1.0
"""Width of the Gaussian that these few photons are averaged with, pixels."""


@dataclass(frozen=True)
class CoverageScore:
    """Coverage in one bin of intensity."""

    scenes: str
    """``simulated``, or the name of the measured series."""
    binned_by: str
    """``estimate``: what a user sees; ``truth``: what nobody knows."""
    low: float
    high: float
    """Of the bin, counts per pixel."""
    pixels: int
    covered: tuple[float, ...]
    """Share of pixels whose truth is within the 68, 90 and 95 % interval."""
    pull_width: float
    """Root mean square of (estimate - truth) / sigma."""


class _Tally:
    """Collects pixels: estimate, truth, sigma, and interval bounds."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(
        self,
        denoiser: SupportsDenoise,
        counts: np.ndarray,
        mask: np.ndarray,
        truth: np.ndarray,
        scale: float = 0.0,
        left_out: np.ndarray | bool = False,
    ) -> bool:
        """Denoise a frame and keep its pixels; False if the denoiser states no error.

        ``scale``: of a truth that was counted, one count; 0: it is known.
        """
        found = denoiser.denoise(counts, 1.0, mask)
        sigma = getattr(found, "sigma", None)
        if sigma is None:
            return False
        # Every other pixel along both axes: neighbours err alike.
        every = np.s_[::2, ::2]
        keep = ~(mask | left_out)[every]
        rate, known, sigma = (x[every][keep] for x in (found.rate, truth, sigma))
        # Of the expected counts: the counts themselves would call their noise small where it is
        # low. And of what `measured_coverage` spreads them by.
        noise = np.sqrt(np.maximum(rate, 0) * scale + scale**2 / 12)
        bounds = []
        for confidence in CONFIDENCES:
            z = HALF_WIDTHS[confidence]
            low, high = rate - z * sigma, rate + z * sigma
            if hasattr(found, "interval"):
                low, high = (x[every][keep] for x in found.interval(confidence))
            # The reference's own noise widens the interval on either side.
            bounds.append(rate - np.hypot(rate - low, z * noise))
            bounds.append(rate + np.hypot(high - rate, z * noise))
        self.parts.append(np.stack([rate, known, np.hypot(sigma, noise), *bounds]))
        return True

    def scores(self, scenes: str, by: str) -> list[CoverageScore]:
        pixels = np.concatenate(self.parts, 1)
        estimate, truth, sigma, *bounds = pixels
        level = truth if by == "truth" else estimate
        out = []
        for low, high in itertools.pairwise(EDGES):
            of = (level >= low) & (level < high)
            if of.sum() < LEAST_PIXELS:
                continue
            covered = tuple(
                float(((truth >= bounds[2 * i]) & (truth <= bounds[2 * i + 1]))[of].mean())
                for i in range(len(CONFIDENCES))
            )
            pulls = (estimate - truth)[of] / np.maximum(sigma[of], 1e-12)
            width = float(np.sqrt(np.mean(np.minimum(pulls**2, 1e4))))
            out.append(CoverageScore(scenes, by, low, high, int(of.sum()), covered, width))
        return out


def simulated_coverage(
    denoiser: SupportsDenoise, track: Track, *, scenes: int = 40, side_px: int = 160, seed: int = 21
) -> list[CoverageScore]:
    """Compare intervals with the known rates of simulated scenes.

    Half of the scenes are diffraction scenes with known peaks over 0.05 to 500 counts a
    pixel, which training does not draw; the other half are of the kinds that it does, with
    another seed.

    Returns
    -------
    list of CoverageScore
        Binned by the estimate, then by the truth. Empty if the denoiser states no errors.
    """
    tally = _Tally()
    for i in track(range(scenes), "intervals, simulated"):
        rng = np.random.default_rng([seed, i])
        mask = np.zeros((side_px, side_px), bool)
        if i % 2:
            rate = random_scene((side_px, side_px), rng, log10_level=(-1.3, 2.7))
        else:
            scene = diffraction_scene((side_px, side_px), seed=1000 + i, hot_pixels=0)
            rate, mask = scene.rate * 10 ** rng.uniform(-1.3, 2.5), scene.mask
        counts = np.where(mask, 0, draw_counts(rate, rng))
        if not tally.add(denoiser, counts, mask, rate):
            return []
    return tally.scores("simulated", "estimate") + tally.scores("simulated", "truth")


def draw_counts(rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expose a scene: (H, W) counts."""
    return rng.poisson(rate)


def measured_coverage(
    frames: FrameSet,
    denoiser: SupportsDenoise,
    track: Track,
    *,
    fractions: Sequence[float] = (1.0, 0.1, 0.01),
    most_frames: int = 4,
) -> list[CoverageScore]:
    """Compare intervals with the sum of a frame's neighbours, whose own noise is added.

    A fifth of the neighbours' photons says which pixels are bright enough, the others are what
    intervals are compared with.

    Returns
    -------
    list of CoverageScore
        Empty if the denoiser states no errors, or no frame has neighbours that agree.
    """
    window = middle(frames.mask.shape, (512, 512))
    chosen = spread(list(pairs(frames, window)), most_frames)
    tally = _Tally()
    jobs = [(fraction, *pair) for fraction in fractions for pair in chosen]
    for fraction, i, counts, reference, moved in track(jobs, f"{frames.name}, intervals"):
        rng = rng_of(frames.name, i)
        part = counts if fraction == 1 else thin(counts, fraction, rng)[0]
        selecting, others = thin(reference, SELECTING, rng)
        scale = fraction * counts[~moved].sum() / others[~moved].sum()
        mask = frames.mask[window]
        near = gaussian(selecting, SELECTING_PX, moved)
        dim = (near < SELECTING * LEAST_REFERENCE) | moved
        # Spread over the unit around each, or intervals would hold whole counts or none.
        truth = scale * (others + rng.uniform(-0.5, 0.5, others.shape))
        if not tally.add(denoiser, part, mask, truth, scale, dim):
            return []
    return tally.scores(frames.name, "estimate") if tally.parts else []
