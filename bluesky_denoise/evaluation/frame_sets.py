"""Series of measured frames: read, checked, and thinned alike in every run."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.evaluation.known_sets import KnownSet, known_set
from bluesky_denoise.frame_files import check_stack, read_frame_file, usable_mask, without_fraction
from bluesky_denoise.photons.thinning import check_photon_counts
from bluesky_denoise.support.digests import frame_digests, series_digest

__all__ = [
    "FrameSet",
    "Show",
    "Track",
    "frame_set",
    "lit_frames",
    "middle",
    "read_frame_set",
    "rng_of",
    "scored_frames",
    "spread",
]

T = TypeVar("T")
LEAST_FLAG = -2
"""Least value that marks a pixel of a counting detector as invalid; below are no flags."""
Show = Callable[[str, dict[str, np.ndarray], np.ndarray], None]
"""Takes the images of one frame for a picture: title, name -> (H, W) counts, and the mask."""
Track = Callable[[Sequence, str], Iterable]
"""Wraps a sequence so that progress is shown; the second argument says of what."""


@dataclass(frozen=True, eq=False)
class FrameSet:
    """Raw photon counts of one series."""

    name: str
    """Of the file or run."""
    counts: np.ndarray
    """(n, H, W) integer counts, 0 in masked pixels."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    known: KnownSet
    """What each frame is good for."""
    digest: str = ""
    """Hash by which training knows the series."""


def read_frame_set(path: Path, mask: np.ndarray | None = None) -> FrameSet:
    """Read raw photon counts from HDF5, and refuse what cannot be scored.

    Parameters
    ----------
    path : in a layout of :func:`~bluesky_denoise.frame_files.read_frame_file`; of two exposures,
        the short one is read; ``frames`` may be a single one (H, W)
    mask : (H, W) bool, True where invalid, beside the mask of the file

    Raises
    ------
    FrameShapeError
        If there are no frames of three axes, or a mask has another shape.
    FrameValueError
        If the frames are no photon counts.
    """
    found = read_frame_file(path, mask)
    kind = found.about.get("kind", "")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    frames = found.frames[None] if found.frames.ndim == 2 else found.frames
    return frame_set(path.stem, frames, found.mask, kind)


def frame_set(
    name: str, counts: np.ndarray, mask: np.ndarray | None = None, kind: str = ""
) -> FrameSet:
    """Check raw photon counts, and look up what is known of them.

    Parameters
    ----------
    name : of the file or run
    counts : (n, H, W) integer counts, or floats without a fraction; pixels that flag themselves
        (:func:`~bluesky_denoise.frame_files.usable_mask`) count as masked
    mask : (H, W) bool, True where invalid
    kind : what the file says of its detector

    Raises
    ------
    FrameShapeError
        If the frames are not (n, H, W), or the mask has another shape.
    FrameValueError
        If the frames are no photon counts, or hold none.
    """
    counts = np.asarray(counts)
    check_stack(counts, name)
    if "integrating" in kind:
        raise FrameValueError(f"{name} says of itself: {kind}. It cannot be thinned.")
    least = float(np.min(counts, where=np.isfinite(counts), initial=0))
    if least < LEAST_FLAG:
        raise FrameValueError(
            f"{name} has a least value of {least:g}: an integrating detector, or a correction. "
            "Only raw photon counts can be thinned."
        )
    mask, digest = usable_mask(counts, mask, name), series_digest(frame_digests(counts))
    counts = np.where(mask, counts.dtype.type(0), counts)
    counts = without_fraction(counts)
    if not counts.any():
        raise FrameValueError(
            f"{name} holds no counts in its {int((~mask).sum())} valid pixels: nothing to score."
        )
    check_photon_counts(counts, mask)
    return FrameSet(name, counts, mask, known_set(name, counts.shape), digest)


def middle(shape: tuple[int, int], most: tuple[int, int]) -> tuple[slice, slice]:
    """Cut the middle out of a frame: the same pixels for every method."""
    rows, cols = (
        slice((size - min(size, m)) // 2, (size - min(size, m)) // 2 + min(size, m))
        for size, m in zip(shape, most, strict=True)
    )
    return rows, cols


def scored_frames(frames: FrameSet) -> list[int]:
    """Return the frames that are to be scored: of a known series, those that `KnownSet` names."""
    some = frames.known.frames or range(len(frames.counts))
    return [i for i in some if i < len(frames.counts)]


def lit_frames(frames: FrameSet, window: tuple[slice, slice]) -> list[int]:
    """Return the frames of those to be scored that hold counts in a window."""
    valid = ~frames.mask[window]
    return [i for i in scored_frames(frames) if frames.counts[i][window][valid].any()]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Pick up to so many, evenly spread."""
    at = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[i] for i in np.unique(at)]


def rng_of(name: str, frame: int) -> np.random.Generator:
    """Return what thins a frame: the same photons in every run, for every denoiser."""
    return np.random.default_rng([zlib.crc32(name.encode()), frame])
