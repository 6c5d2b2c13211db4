"""Series of measured frames: read, checked, and thinned alike in every run."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.evaluation.known_sets import KnownSet, known_set
from bluesky_denoise.thinning import check_photon_counts

__all__ = [
    "FrameSet",
    "Show",
    "Track",
    "frame_set",
    "middle",
    "read_frame_set",
    "rng_of",
    "spread",
]

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
    """(n, H, W) integer counts; masked pixels hold anything."""
    mask: np.ndarray
    """(H, W) bool, True where invalid."""
    known: KnownSet
    """What each frame is good for."""


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


def rng_of(name: str, frame: int) -> np.random.Generator:
    """Return what thins a frame: the same photons in every run, for every denoiser."""
    return np.random.default_rng([zlib.crc32(name.encode()), frame])
