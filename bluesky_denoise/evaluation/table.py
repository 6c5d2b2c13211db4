"""Scores of several denoisers on thinned frames of counting detectors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.evaluation.baselines import best_gaussian
from bluesky_denoise.evaluation.metrics import (
    flux_ratio,
    noise_corrected_error,
    poisson_deviance,
)

__all__ = ["Method", "Score", "frame_sets", "mean_scores", "score_frame"]

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(H, W) integer counts and (H, W) bool mask -> (H, W) expected counts."""


@dataclass(frozen=True)
class Score:
    """How one method did on one frame."""

    method: str
    """Its name; a Gaussian's has the sigma that was best."""
    deviance: float
    """Excess of the mean Poisson deviance of the held-out counts over that of the best
    Gaussian, in percent of it; below 0 is better than any Gaussian."""
    error: float
    """Noise-corrected squared error over the mean count; the raw frame has about 1."""
    flux: float
    """Total counts of the estimate over those of the frame."""


def frame_sets(
    path: Path, most_frames: int, most_shape: tuple[int, int], first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Read frames spread evenly over a file, cut to their middle.

    Parameters
    ----------
    path : HDF5 file with ``frames`` (n, H, W), and ``mask`` (H, W), nonzero = invalid
    most_frames, most_shape : what is read at most
    first : frames before this one are left out, if there are others

    Returns
    -------
    tuple of numpy.ndarray
        (m, h, w) integer counts, (h, w) bool mask.

    Raises
    ------
    FrameShapeError
        If there is no data set ``frames`` of three axes.
    """
    with h5py.File(path) as file:
        if "frames" not in file or file["frames"].ndim != 3:
            raise FrameShapeError(f"{path} has {sorted(file)}; expected `frames` of (n, H, W).")
        count, *shape = file["frames"].shape
        cut = tuple(
            slice((size - min(size, most)) // 2, (size - min(size, most)) // 2 + min(size, most))
            for size, most in zip(shape, most_shape, strict=True)
        )
        first = min(first, count - 1)
        spread = np.linspace(first, count - 1, min(count - first, most_frames))
        picked = np.unique(spread.round().astype(int))
        frames = np.stack([file["frames"][int(i)][cut] for i in picked])
        mask = file["mask"][...][cut] != 0 if "mask" in file else np.zeros(frames.shape[1:], bool)
    return frames.astype(np.int64), mask


def score_frame(
    counts: np.ndarray,
    mask: np.ndarray,
    fraction: float,
    methods: Mapping[str, Method],
    rng: np.random.Generator,
) -> Iterator[Score]:
    """Thin a frame, denoise the part, and score it on the independent remainder.

    Parameters
    ----------
    counts : (H, W) integer photon counts
    mask : (H, W) bool, True where invalid
    fraction : of the photons that are denoised, 0 to 1
    methods : what to score, beside the raw frame and the best Gaussian
    rng : decides photon by photon

    Yields
    ------
    Score
        Of the raw frame, of the best Gaussian, and of each method.
    """
    counts = np.where(mask, 0, counts)
    part = rng.binomial(counts, fraction)
    rest = counts - part
    scale = fraction / (1 - fraction)

    def deviance(estimate: np.ndarray) -> float:
        return poisson_deviance(estimate / scale, rest, mask)

    blurred, sigma = best_gaussian(part, deviance, mask)
    best = deviance(blurred)
    estimates: Iterable[tuple[str, np.ndarray]] = [
        ("raw", part),
        (f"Gaussian {sigma:g} px", blurred),
        *((name, method(part, mask)) for name, method in methods.items()),
    ]
    for name, estimate in estimates:
        yield Score(
            name,
            100 * (deviance(estimate) / best - 1) if best > 0 else 0.0,
            noise_corrected_error(estimate, rest, scale, mask),
            flux_ratio(estimate, part, mask),
        )


def mean_scores(scores: Sequence[Score]) -> dict[str, Score]:
    """Average scores by method; Gaussians of all widths are one method."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        name = "best Gaussian" if score.method.startswith("Gaussian") else score.method
        groups.setdefault(name, []).append(score)
    return {
        name: Score(
            name,
            float(np.mean([s.deviance for s in group])),
            float(np.mean([s.error for s in group])),
            float(np.mean([s.flux for s in group])),
        )
        for name, group in groups.items()
    }
