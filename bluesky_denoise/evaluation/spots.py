"""What sharp spots keep of their counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bluesky_denoise.evaluation.baselines import gaussian
from bluesky_denoise.evaluation.frame_sets import FrameSet, Track, middle
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import poisson_deviance, spot_intensities

__all__ = ["SpotScore", "find_spots", "spot_scores"]

CLASSES = ((3.0, 10.0), (10.0, 20.0), (20.0, np.inf))
"""Significances, standard deviations of the integrated raw counts."""
EDGE = 9
"""Pixels at the edge of a frame where no spot is looked for."""
LOST = 0.5
"""A spot that keeps less than this share of its raw counts is lost."""
GAUSSIAN = Method("Gaussian 1 px", lambda n, mask, judge: gaussian(n, 1.0, mask))


@dataclass(frozen=True)
class SpotScore:
    """One method on the spots of one series, in one class of significance."""

    set: str
    held_out: str
    method: str
    significance: str
    """Of the integrated raw counts, standard deviations."""
    spots: int
    kept: float
    """Counts of all spots in boxes of 5 x 5 pixels, background subtracted, over the raw ones."""
    median: float
    """Of the same ratio, spot by spot."""
    lost_at: tuple[tuple[int, int, int], ...]
    """Number of the frame, row and column of each spot that keeps less than half."""

    @property
    def lost(self) -> int:
        """How many keep less than half."""
        return len(self.lost_at)


def find_spots(counts: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Find pixels that are brightest within 3 pixels and stand out over the surroundings.

    Parameters
    ----------
    counts : (H, W) integer counts, 0 where masked
    mask : (H, W) bool, True where invalid

    Returns
    -------
    numpy.ndarray
        (n, 2) rows and columns: more than 20 counts, and 8 standard deviations above a
        Gaussian of 4 pixels; none near masked pixels or the frame's edge.
    """
    background = gaussian(counts, 4.0, mask)
    significance = (counts - background) / np.sqrt(background + 1)
    highest = sliding_window_view(np.pad(counts, 3), (7, 7)).max((2, 3))
    inside = gaussian(mask.astype(float), 3.0) < 1e-6
    inside[:EDGE] = inside[-EDGE:] = False
    inside[:, :EDGE] = inside[:, -EDGE:] = False
    return np.argwhere((counts == highest) & (significance > 8) & (counts > 20) & inside)


def spot_scores(
    frames: FrameSet,
    methods: Sequence[Method],
    track: Track,
    *,
    most_shape: tuple[int, int] = (384, 384),
) -> list[SpotScore]:
    """Compare the integrated intensities of sharp spots with the raw ones.

    The same photons are summed twice, so the ratio has hardly any noise. A Gaussian of one
    pixel is scored too: the raw frame is the reference, so no width is best.

    Parameters
    ----------
    frames : raw photon counts; ``known.stills`` says which are looked at
    methods : what is scored; the slow ones see the middle of each frame only
    track : shows progress
    most_shape : of the middle

    Returns
    -------
    list of SpotScore
        Empty if no frame is known to have spots.
    """
    stills = [i for i in frames.known.stills or () if i < len(frames.counts)]
    compared = [GAUSSIAN, *(m for m in methods if m.name not in ("raw", "best Gaussian"))]
    found: dict[str, list[np.ndarray]] = {}  # (5, n): frame, row, column, raw counts, kept ones
    for i in track(stills, f"{frames.name}, spots") if stills else ():
        counts = np.where(frames.mask, 0, frames.counts[i]).astype(np.int64)
        for slow in (False, True):
            window = middle(counts.shape, most_shape if slow else counts.shape)
            cut, mask = counts[window], frames.mask[window]
            some = [m for m in compared if m.slow == slow]
            spots = find_spots(cut, mask) if some else np.empty((0, 2), int)
            before = spot_intensities(cut, spots)
            corner = np.array([part.start or 0 for part in window])
            places = np.column_stack([np.full(len(spots), i), spots + corner]).T

            def judge(
                estimate: np.ndarray, cut: np.ndarray = cut, mask: np.ndarray = mask
            ) -> float:
                return poisson_deviance(estimate, cut, mask)

            for method in some:
                after = spot_intensities(method.estimate(cut, mask, judge), spots)
                name = f"{method.name}, middle of the frame" if slow else method.name
                found.setdefault(name, []).append(np.vstack([places, before, after]))
    return [
        score
        for name, parts in found.items()
        for score in _by_class(frames, name, np.concatenate(parts, 1))
    ]


def _by_class(frames: FrameSet, name: str, found: np.ndarray) -> list[SpotScore]:
    places, (before, after) = found[:3].astype(int), found[3:]
    # Of 25 pixels with some background each.
    sigmas = before / np.sqrt(np.maximum(before, 1) + 25 * 4)
    scores = []
    for low, high in CLASSES:
        of = (sigmas >= low) & (sigmas < high)
        if of.any():
            ratio = after[of] / before[of]
            scores.append(
                SpotScore(
                    frames.name,
                    frames.known.held_out,
                    name,
                    f"{low:g} to {high:g}" if np.isfinite(high) else f"above {low:g}",
                    int(of.sum()),
                    float(after[of].sum() / before[of].sum()),
                    float(np.median(ratio)),
                    tuple(map(tuple, places[:, of][:, ratio < LOST].T.tolist())),
                )
            )
    return scores
