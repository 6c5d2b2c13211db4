"""Scores on measured frames by their neighbours: a longer exposure with noise of its own.

For scans that change slowly. The frame itself is left out of the sum that it is compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bluesky_denoise.evaluation.frame_sets import FrameSet, Show, Track, middle, rng_of, spread
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import flux_ratio, line_contrast, noise_corrected_error
from bluesky_denoise.photons.thinning import thin

__all__ = ["NeighbourScore", "neighbour_scores", "pairs"]

BLOCK_PX = 5
"""Side of the squares by which frames and neighbours are compared."""
STATIONARY = 0.15
"""How far from 1 the reduced chi-square of a frame against its neighbours may be, beside four
standard deviations of its own, for the scene to have stood still."""


@dataclass(frozen=True)
class NeighbourScore:
    """One method on single frames of a scan against the sum of their neighbours."""

    set: str
    held_out: str
    fraction: float
    """Share of the photons of a frame that was denoised; 1 is the frame itself."""
    times_longer: float
    """Counts of the neighbours over those that were denoised."""
    frames: int
    method: str
    error: float
    """`noise_corrected_error`, mean over frames."""
    error_spread: float
    """Standard error of that mean, from the scatter over frames."""
    contrast: float
    """Of the line over that of the neighbours, mean over frames; NaN where there is no line."""
    contrast_spread: float
    """Standard error of that mean, too."""
    flux: float
    """As in `ThinnedScore`."""


def neighbour_scores(
    frames: FrameSet,
    methods: Sequence[Method],
    track: Track,
    show: Show | None = None,
    *,
    fractions: Sequence[float] = (1.0, 0.1),
    most_frames: int = 8,
    most_shape: tuple[int, int] = (256, 487),
) -> list[NeighbourScore]:
    """Score single frames of a scan against the sum of the frames around them.

    Parameters
    ----------
    frames : raw photon counts; frames whose neighbours do not agree with them within the
        noise are left out
    methods : what is scored
    track : shows progress
    show : takes the images of one frame
    fractions : shares of a frame's photons that are denoised; 1 is the frame itself
    most_frames, most_shape : spread over the series, and cut to their middle

    Returns
    -------
    list of NeighbourScore
        Empty if no frame has neighbours that agree with it.
    """
    window = middle(frames.mask.shape, most_shape)
    line = frames.known.line
    line = None if line is None else line - window[1].start
    found_pairs = list(pairs(frames, window))
    found: dict[tuple[float, str], list[tuple[float, ...]]] = {}
    jobs = [(f, *pair) for f in fractions for pair in spread(found_pairs, most_frames)]
    for fraction, i, counts, reference, mask in track(jobs, f"{frames.name}, neighbours"):
        part = counts if fraction == 1 else thin(counts, fraction, rng_of(frames.name, i))[0]
        scale = fraction * counts[~mask].sum() / reference[~mask].sum()

        def judge(
            estimate: np.ndarray,
            reference: np.ndarray = reference,
            scale: float = scale,
            mask: np.ndarray = mask,
        ) -> float:
            return noise_corrected_error(estimate, reference, scale, mask)

        invalid = frames.mask[window]
        estimates = {m.name: m.estimate(part, invalid, judge) for m in methods}
        if show is not None and not found:
            title = f"{frames.name}, frame {i} against its neighbours"
            show(title, {**estimates, f"{1 / scale:.0f} times longer": scale * reference}, mask)
        for name, estimate in estimates.items():
            contrast = np.nan
            if line is not None:
                contrast = line_contrast(estimate, line) / line_contrast(reference, line)
            flux = flux_ratio(estimate, part, invalid)
            score = (judge(estimate), contrast, flux, 1 / scale)
            found.setdefault((fraction, name), []).append(score)
    out = []
    for (fraction, name), scores in found.items():
        error, contrasts, fluxes, times = (np.array(x) for x in zip(*scores, strict=True))
        worst = max(fluxes[np.isfinite(fluxes)], key=lambda f: abs(f - 1), default=np.nan)
        out.append(
            NeighbourScore(
                frames.name,
                frames.known.held_out,
                fraction,
                float(times.mean()),
                len(error),
                name,
                float(error.mean()),
                _spread_of_mean(error),
                float(contrasts.mean()),
                _spread_of_mean(contrasts),
                float(worst),
            )
        )
    return out


def _spread_of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def pairs(
    frames: FrameSet, window: tuple[slice, slice]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the frames that agree with the sum of their neighbours, cut to a window.

    Yields
    ------
    tuple
        Index, (h, w) int64 counts, (h, w) int64 sum of the neighbours, 0 where masked; (h, w)
        bool, True where pixels are masked or the scene did not stand still.
    """
    first, last = frames.known.block or (0, len(frames.counts) - 1)
    last = min(last, len(frames.counts) - 1)
    mask = frames.mask[window]
    for i in frames.known.targets:
        if not first <= i <= last:
            continue
        around = frames.known.around
        near = [j for j in range(max(first, i - around), min(last, i + around) + 1) if j != i]
        if not near:
            continue
        counts = np.where(mask, 0, frames.counts[i][window]).astype(np.int64)
        cut = (np.where(mask, 0, frames.counts[j][window]) for j in near)
        reference = np.sum([c.astype(np.int64) for c in cut], axis=0)
        moved = _moved(counts, reference)
        if moved is not None:
            yield i, counts, reference, mask | moved


def _moved(counts: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Mark blocks of 5 x 5 pixels that differ by more than six standard deviations.

    A beam that wanders behind its stop, or a spot that comes and goes, spoils a few blocks only.

    Returns
    -------
    numpy.ndarray or None
        (H, W) bool; None if more than 1 % differ, or the others do not agree either.
    """
    height, width = (size - size % BLOCK_PX for size in counts.shape)
    shape = (height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    one, many = (x[:height, :width].reshape(shape).sum((1, 3)) for x in (counts, reference))
    still = many > 0
    chi_square = np.zeros(one.shape)
    for _ in range(5):
        scale = one[still].sum() / max(many[still].sum(), 1)
        expected = np.maximum(many * scale, 1e-9)
        chi_square = (one - expected) ** 2 / (expected * (1 + scale))
        lit = expected >= 5
        still = (many > 0) & ~(lit & (chi_square > 36))
    used = still & lit
    if used.sum() < 10 or (lit & ~still).sum() > 0.01 * lit.sum():
        return None
    limit = STATIONARY + 4 * np.sqrt(2 / used.sum())
    if abs(float(chi_square[used].mean()) - 1) > limit:
        return None
    moved = np.zeros(counts.shape, bool)
    blocks = (lit & ~still).repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1)
    moved[:height, :width] = blocks
    return moved
