"""Pairs from HDF5 files: our layout, and that of the paper's archive."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors compress with)
import numpy as np

from bluesky_denoise.errors import FrameShapeError, FrameValueError
from bluesky_denoise.thinning import check_photon_counts
from bluesky_denoise.training.pairs import MeasuredPairs, RecordedPairs, Repeats, ThinnedFrames

__all__ = ["find_files", "read_file", "single_frames", "usable_mask"]

LOW, HIGH = "low_count", "high_count"
ABOUT = ("detector", "exposure_s", "source", "licence", "license")
"""Attributes that go into the card."""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return files, and the ``*.h5`` and ``*.hdf5`` in folders, sorted.

    Raises
    ------
    FrameShapeError
        If a path does not exist, or a folder holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted({*path.glob("*.h5"), *path.glob("*.hdf5")}) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise FrameShapeError(f"There are no frames at {path}; expected a file or a folder.")
        found += files
    return found


def read_file(path: Path, *, repeats: bool = False) -> RecordedPairs:
    """Read the frames of an HDF5 file.

    Parameters
    ----------
    path : has ``frames`` (n, H, W) and perhaps ``mask`` (H, W), nonzero where invalid; or
        ``low_count/data`` and ``high_count/data`` (H, W, n), as doi:10.5281/zenodo.10816877
    repeats : all frames show one scene; the same as an attribute ``repeats`` of 1

    Returns
    -------
    RecordedPairs
        `Repeats`, `ThinnedFrames`, or `MeasuredPairs`. The exposure ratio of the latter is
        the attribute ``exposure_s`` of ``high_count`` over that of ``low_count``; without
        them it is the ratio of all counts.

    Raises
    ------
    FrameShapeError
        If the data sets are missing, or their shapes do not fit.
    FrameValueError
        If single frames are no raw photon counts, or pairs hold no counts.
    """
    try:
        file = h5py.File(path)
    except OSError as error:
        raise FrameShapeError(f"{path} cannot be read as HDF5: {error}.") from None
    with file:
        about: dict[str, Any] = {"file": "/".join(path.resolve().parts[-2:])}
        about |= {key: _plain(file.attrs[key]) for key in ABOUT if key in file.attrs}
        given = file["mask"][...] != 0 if "mask" in file else None
        if "frames" in file:
            repeats = repeats or bool(file.attrs.get("repeats", False))
            repeats = repeats or bool(file["frames"].attrs.get("repeats", False))
            return single_frames(file["frames"][...], given, path.stem, about, repeats=repeats)
        if f"{LOW}/data" in file and f"{HIGH}/data" in file:
            low, high = (np.moveaxis(file[f"{name}/data"][...], -1, 0) for name in (LOW, HIGH))
            exposures = [_exposure(file[name]) for name in (LOW, HIGH)]
            return _archive_pairs(path.stem, low, high, given, about, exposures)
        raise FrameShapeError(
            f"{path} has {sorted(file)}; expected the data sets `frames` (n, H, W) and `mask`, or "
            f"`{LOW}/data` and `{HIGH}/data` (H, W, n)."
        )


def single_frames(
    frames: np.ndarray,
    mask: np.ndarray | None,
    name: str,
    about: Mapping[str, Any],
    *,
    repeats: bool,
) -> Repeats | ThinnedFrames:
    """Return frames that have no long exposure as pairs; thinned ones must be photons."""
    _check_stack(frames, name)
    mask = usable_mask(frames, mask, name)
    frames = np.where(mask, frames.dtype.type(0), frames)
    if repeats:
        return Repeats(counts=frames, mask=mask, name=name, about=about)
    try:
        check_photon_counts(frames, mask)
    except FrameValueError as error:
        raise FrameValueError(f"{name}: {error}") from None
    return ThinnedFrames(counts=frames, mask=mask, name=name, about=about)


def _archive_pairs(
    name: str,
    low: np.ndarray,
    high: np.ndarray,
    mask: np.ndarray | None,
    about: Mapping[str, Any],
    exposures: list[float | None],
) -> MeasuredPairs:
    for frames in (low, high):
        _check_stack(frames, name)
    if low.shape != high.shape:
        raise FrameShapeError(
            f"{name} has {LOW}/data {low.shape} and {HIGH}/data {high.shape} (n, H, W); expected "
            "frames of one size, as many of each."
        )
    mask = usable_mask(low, mask, name) | usable_mask(high, mask, name)
    low, high = (np.where(mask, frames.dtype.type(0), frames) for frames in (low, high))
    short, long = exposures
    if short and long:
        ratio, told = long / short, "attributes exposure_s"
    else:
        totals = [float(frames[:, ~mask].sum(dtype=np.float64)) for frames in (low, high)]
        if min(totals) <= 0:
            raise FrameValueError(f"{name} has {totals} counts in short and long frames.")
        ratio, told = totals[1] / totals[0], "ratio of all counts"
    return MeasuredPairs(
        counts=low,
        targets=high,
        ratios=np.full(len(low), ratio),
        mask=mask,
        name=name,
        about={**about, "exposure_ratio": round(ratio, 4), "exposure_ratio_from": told},
    )


def usable_mask(frames: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    """Return a mask with the pixels added that flag themselves in any frame.

    Parameters
    ----------
    frames : (n, H, W)
    mask : (H, W) bool, True where invalid; None: none
    name : for the message of an error

    Returns
    -------
    numpy.ndarray
        (H, W) bool: masked, or negative, not finite, or 4294967295 in integers of 32 bits
        or more.
    """
    flagged = np.zeros(frames.shape[1:], bool)
    for frame in frames:
        if frame.dtype.kind == "f":
            flagged |= ~np.isfinite(frame)
        elif frame.dtype.itemsize >= 4:
            flagged |= frame == 2**32 - 1
        if frame.dtype.kind in "if":
            flagged |= frame < 0
    if mask is None:
        return flagged
    if mask.shape != flagged.shape:
        raise FrameShapeError(
            f"{name} has frames {frames.shape} and mask {mask.shape}; expected (n, H, W), (H, W)."
        )
    return flagged | mask


def _check_stack(frames: np.ndarray, name: str) -> None:
    if frames.ndim != 3 or 0 in frames.shape or frames.dtype.kind not in "biuf":
        raise FrameShapeError(
            f"{name} has frames of shape {frames.shape} and dtype {frames.dtype}; expected "
            "numbers (n, H, W)."
        )


def _exposure(group: h5py.Group) -> float | None:
    found = group.attrs.get("exposure_s", group["data"].attrs.get("exposure_s"))
    return float(found) if found is not None else None


def _plain(value: Any) -> Any:
    """Return an attribute as JSON can hold it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value.decode() if isinstance(value, bytes) else value
