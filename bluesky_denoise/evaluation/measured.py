"""Scores on measured frames: against held-out photons, and against longer exposures.

A frame is never part of what it is compared with. Thinning deals its photons into two
independent parts; neighbours of a slow scan are a longer exposure with noise of its own.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.evaluation.known_sets import KnownSet, known_set
from bluesky_denoise.evaluation.methods import Method
from bluesky_denoise.evaluation.metrics import (
    deviance_ratio,
    flux_ratio,
    line_contrast,
    noise_corrected_error,
    poisson_deviance,
)
from bluesky_denoise.thinning import check_photon_counts, thin

__all__ = [
    "FrameSet",
    "NeighbourScore",
    "Show",
    "ThinnedScore",
    "Track",
    "frame_set",
    "middle",
    "neighbour_scores",
    "pairs",
    "read_frame_set",
    "rng_of",
    "spread",
    "thinned_scores",
]

Show = Callable[[str, dict[str, np.ndarray], np.ndarray], None]
"""Takes the images of one frame for a picture: title, name -> (H, W) counts, and the mask."""
Track = Callable[[Sequence, str], Iterable]
"""Wraps a sequence so that progress is shown; the second argument says of what."""
BLOCK_PX = 5
"""Side of the squares by which frames and neighbours are compared."""
STATIONARY = 0.15
"""How far from 1 the reduced chi-square of a frame against its neighbours may be, beside four
standard deviations of its own, for the scene to have stood still."""


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Raw photon counts of one series."""

    name: str
    """Of the file or run."""
    counts: np.ndarray
    """(n, H, W) integer counts; masked pixels hold anything."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    known: KnownSet
    """What each frame is good for."""


@dataclass(frozen=True)
class ThinnedScore:
    """One method on the thinned frames of one series; means over frames."""

    set: str
    held_out: str
    """As in `KnownSet`."""
    fraction: float
    """Share of the photons that was denoised."""
    counts_per_pixel: float
    """Mean of what was denoised."""
    method: str
    deviance: float
    """Of the held-out counts, per degree of freedom: `deviance_ratio`."""
    against_gaussian: float
    """Mean deviance of the held-out counts over that of the best Gaussian, less 1; below 0 is
    better than any Gaussian."""
    error: float
    """`noise_corrected_error`; the raw frame has about 1."""
    flux: float
    """Total of the estimate over that of the input; the frame that is furthest from 1."""


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
    """Of the line over that of the neighbours; NaN where there is no line."""
    flux: float
    """As in `ThinnedScore`."""


def read_frame_set(path: Path) -> FrameSet:
    """Read raw photon counts from HDF5, and refuse what cannot be scored.

    Parameters
    ----------
    path : HDF5 file with ``frames`` (n, H, W), and ``mask`` (H, W), nonzero = invalid; or in
        the layout of Oppliger et al. (2024), ``low_count/data`` (H, W, n)

    Raises
    ------
    FrameShapeError
        If there are no frames of three axes, or the mask has another shape.
    FrameValueError
        If the frames are no photon counts.
    """
    with h5py.File(path) as file:
        if "frames" in file:
            counts = file["frames"][...]
        elif "low_count/data" in file:
            counts = np.moveaxis(file["low_count/data"][...], -1, 0)
        else:
            raise FrameShapeError(f"{path} has {sorted(file)}; expected `frames` (n, H, W).")
        mask = file["mask"][...] != 0 if "mask" in file else np.zeros(counts.shape[1:], bool)
        kind = str(file.attrs.get("kind", ""))
    return frame_set(path.stem, counts, mask, kind)


def frame_set(
    name: str, counts: np.ndarray, mask: np.ndarray | None = None, kind: str = ""
) -> FrameSet:
    """Check raw photon counts, and look up what is known of them.

    Parameters
    ----------
    name : of the file or run
    counts : (n, H, W) integer counts, or floats without a fraction
    mask : (H, W) bool, True where invalid
    kind : what the file says of its detector

    Raises
    ------
    FrameShapeError
        If the frames are not (n, H, W), or the mask has another shape.
    FrameValueError
        If the frames are no photon counts.
    """
    counts = np.asarray(counts)
    mask = np.zeros(counts.shape[1:], bool) if mask is None else mask
    if counts.ndim != 3 or not len(counts) or mask.shape != counts.shape[1:]:
        raise FrameShapeError(
            f"{name} has frames {counts.shape} and mask {mask.shape}; expected (n, H, W), (H, W)."
        )
    if "integrating" in kind:
        raise FrameValueError(f"{name} says of itself: {kind}. It cannot be thinned.")
    if counts.dtype.kind == "f" and (counts == np.rint(counts)).all():
        counts = counts.astype(np.int64)
    check_photon_counts(counts, mask)
    return FrameSet(name, counts, mask, known_set(name, len(counts)))


def middle(shape: tuple[int, int], most: tuple[int, int]) -> tuple[slice, slice]:
    """Cut the middle out of a frame: the same pixels for every method."""
    return tuple(
        slice((size - min(size, m)) // 2, (size - min(size, m)) // 2 + min(size, m))
        for size, m in zip(shape, most, strict=True)
    )


def spread(indexes: Sequence[int], most: int) -> list[int]:
    """Pick up to so many, evenly spread."""
    at = np.linspace(0, len(indexes) - 1, min(most, len(indexes))).round().astype(int)
    return [indexes[i] for i in np.unique(at)]


def thinned_scores(
    frames: FrameSet,
    methods: Sequence[Method],
    track: Track,
    show: Show | None = None,
    *,
    fractions: Sequence[float] = (0.5, 0.1, 0.01),
    most_frames: int = 2,
    most_shape: tuple[int, int] = (160, 240),
) -> list[ThinnedScore]:
    """Denoise a share of the photons of measured frames, and score on the others.

    Parameters
    ----------
    frames : raw photon counts
    methods : what is scored; one must be called ``best Gaussian``
    track : shows progress
    show : takes the images of one frame
    fractions : shares of the photons that are denoised, above 0 and below 1
    most_frames, most_shape : spread over the series, and cut to their middle

    Returns
    -------
    list of ThinnedScore
        Those of one fraction follow each other, in the order of the methods.
    """
    window = middle(frames.mask.shape, most_shape)
    mask = frames.mask[window]
    picked = spread(frames.known.frames or range(len(frames.counts)), most_frames)
    picked = [i for i in picked if i < len(frames.counts)]
    found: dict[tuple[float, str], list[tuple[float, ...]]] = {}
    jobs = [(fraction, i) for fraction in fractions for i in picked]
    for fraction, i in track(jobs, f"{frames.name}, thinned"):
        counts = np.where(mask, 0, frames.counts[i][window]).astype(np.int64)
        part, rest = thin(counts, fraction, rng_of(frames.name, i))
        scale = fraction / (1 - fraction)

        def judge(estimate: np.ndarray, rest: np.ndarray = rest, scale: float = scale) -> float:
            return poisson_deviance(estimate / scale, rest, mask)

        estimates = {m.name: m.estimate(part, mask, judge) for m in methods}
        best = judge(estimates["best Gaussian"])
        if show is not None and (fraction, i) == (fractions[min(1, len(fractions) - 1)], picked[0]):
            images = {**estimates, "all photons": fraction * counts}
            show(f"{frames.name}, {fraction:.3g} of the photons", images, mask)
        for name, estimate in estimates.items():
            scores = (
                part[~mask].mean(),
                deviance_ratio(estimate / scale, rest, mask),
                judge(estimate) / best - 1 if best > 0 else 0.0,
                noise_corrected_error(estimate, rest, scale, mask),
                flux_ratio(estimate, part, mask),
            )
            found.setdefault((fraction, name), []).append(scores)
    out = []
    for (fraction, name), scores in found.items():
        *means, _ = np.mean(scores, axis=0)
        level, ratio, against, error = map(float, means)
        flux = max((s[-1] for s in scores), key=lambda f: abs(f - 1))
        held_out = frames.known.held_out
        out.append(
            ThinnedScore(
                frames.name, held_out, fraction, level, name, ratio, against, error, float(flux)
            )
        )
    return out


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
            scores = (judge(estimate), contrast, flux, 1 / scale)
            found.setdefault((fraction, name), []).append(scores)
    out = []
    for (fraction, name), scores in found.items():
        error, contrast, flux, times = (np.array(x) for x in zip(*scores, strict=True))
        worst = flux[np.argmax(np.abs(flux - 1))]
        out.append(
            NeighbourScore(
                frames.name,
                frames.known.held_out,
                fraction,
                float(times.mean()),
                len(error),
                name,
                float(error.mean()),
                float(error.std(ddof=1) / np.sqrt(len(error))) if len(error) > 1 else np.nan,
                float(contrast.mean()),
                float(worst),
            )
        )
    return out


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


def rng_of(name: str, frame: int) -> np.random.Generator:
    """Return what thins a frame: the same photons in every run, for every denoiser."""
    return np.random.default_rng([zlib.crc32(name.encode()), frame])
