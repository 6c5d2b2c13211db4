"""Stacks of frames in HDF5 files: the layouts that are read, and pixels that flag themselves."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors compress with)
import numpy as np

from bluesky_denoise.errors import FrameShapeError, MaskError
from bluesky_denoise.frame_checks import valid_pixels

__all__ = [
    "FrameFile",
    "check_stack",
    "find_files",
    "read_frame_file",
    "usable_mask",
    "without_fraction",
]

LOW, HIGH = "low_count", "high_count"
MASKS = ("mask", "pixel_mask")
ENDINGS = ("*.h5", "*.hdf5", "*.nxs")
FRAME_PX = 16
"""Sides that the frames of a data set of unknown name have at least, pixels."""


@dataclass(frozen=True, eq=False)
class FrameFile:
    """What a file holds, as it stands there."""

    frames: np.ndarray
    """(n, H, W); the short ones where there are two exposures."""
    mask: np.ndarray | None = None
    """(H, W) bool, True where invalid; None: the file has none."""
    long: np.ndarray | None = None
    """(n, H, W) long exposures of the same scenes."""
    exposures_s: tuple[float | None, float | None] = (None, None)
    """Of the short and of the long frames, seconds, where their groups say so."""
    about: dict[str, Any] = field(default_factory=dict)
    """Attributes of the file, and of the data set of the frames."""


def find_files(paths: Iterable[Path], *, below: bool = False) -> list[Path]:
    """Return files, and the HDF5 files in folders (.h5, .hdf5, .nxs), sorted.

    Parameters
    ----------
    paths : files and folders
    below : search the folders in folders, too

    Raises
    ------
    FrameShapeError
        If a path does not exist, or a folder holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            search = path.rglob if below else path.glob
            files = sorted({file for ending in ENDINGS for file in search(ending)})
        if not files or not files[0].exists():
            raise FrameShapeError(
                f"There are no frames at {path}; expected a file, or a folder with "
                f"{', '.join(ENDINGS)}."
            )
        found += files
    return found


def read_frame_file(path: Path, mask: np.ndarray | None = None) -> FrameFile:
    """Read the frames of an HDF5 file.

    Parameters
    ----------
    path : has ``frames`` (n, H, W) and perhaps ``mask`` (H, W), nonzero where invalid; or
        ``low_count/data`` and perhaps ``high_count/data`` (H, W, n), as
        doi:10.5281/zenodo.10816877; or, in any group, as NeXus files do, one single data set of
        numbers (n, H, W), perhaps with a ``pixel_mask`` (H, W)
    mask : (H, W) bool, True where invalid, beside the mask of the file

    Raises
    ------
    FrameShapeError
        If it is no HDF5 file, none of these is in it, or its mask and the one given differ in
        shape.
    """
    found = _read(path)
    if mask is None:
        return found
    if found.mask is not None and found.mask.shape != mask.shape:
        raise FrameShapeError(
            f"{path} has a mask {found.mask.shape}; the one given is {mask.shape}."
        )
    return replace(found, mask=mask if found.mask is None else found.mask | mask)


def _read(path: Path) -> FrameFile:
    try:
        file = h5py.File(path)
    except OSError as error:
        raise FrameShapeError(f"{path} cannot be read as HDF5: {error}.") from None
    with file:
        about = dict(file.attrs)
        try:
            if isinstance(data := file.get("frames"), h5py.Dataset):
                return _stack(file, data, about)
            if f"{LOW}/data" in file:
                return _exposures(file, about, path)
            return _only_stack(file, path, about)
        except (OSError, KeyError) as error:
            raise FrameShapeError(f"The frames of {path} cannot be read: {error}.") from None


def _stack(file: h5py.File, data: h5py.Dataset, about: dict[str, Any]) -> FrameFile:
    if data.shape is None:
        raise FrameShapeError(
            f"{file.filename} has {data.name} with no value in it (h5py.Empty); expected frames "
            "(n, H, W)."
        )
    return FrameFile(data[...], _mask(file, data.shape), about=about | dict(data.attrs))


def _exposures(file: h5py.File, about: dict[str, Any], path: Path) -> FrameFile:
    groups = [file[name] for name in (LOW, HIGH) if f"{name}/data" in file]
    for data in (group["data"] for group in groups):
        if not isinstance(data, h5py.Dataset) or data.ndim != 3:
            raise FrameShapeError(
                f"{path} has {data.name}, a {type(data).__name__.lower()} of shape "
                f"{getattr(data, 'shape', None)}; expected frames (H, W, n)."
            )
    stacks = [np.moveaxis(group["data"][...], -1, 0) for group in groups]
    exposures = [_exposure(group, path) for group in groups]
    low, high = [*stacks, None][:2], [*exposures, None][:2]
    return FrameFile(low[0], _mask(file, low[0].shape), low[1], (high[0], high[1]), about)


def _exposure(group: h5py.Group, path: Path) -> float | None:
    found = group.attrs.get("exposure_s", group["data"].attrs.get("exposure_s"))
    if found is None:
        return None
    try:
        seconds = np.unique(np.asarray(found, dtype=np.float64))
    except (TypeError, ValueError):
        seconds = np.empty(0)
    if len(seconds) != 1 or not 0 < seconds[0] < np.inf:
        raise FrameShapeError(
            f"{path} has the attribute exposure_s = {found!r} at {group.name}; expected one "
            "number of seconds, > 0."
        )
    return float(seconds[0])


def _only_stack(file: h5py.File, path: Path, about: dict[str, Any]) -> FrameFile:
    """Read the one data set that can be frames."""
    found = [
        data
        for data in _datasets(file)
        if data.ndim == 3 and data.dtype.kind in "iuf" and min(data.shape[1:]) >= FRAME_PX
    ]
    # A file with frames of its own may link to those of others.
    found = [data for data in found if data.file.filename == file.filename] or found
    if len(found) == 1:
        return _stack(file, found[0], about)
    names = [data.name for data in found]
    held = f"{len(found)} stacks of frames, {names}" if found else str(sorted(file))
    raise FrameShapeError(
        f"{path} has {held}; expected the data sets `frames` (n, H, W) and `mask`, "
        f"`{LOW}/data` and `{HIGH}/data` (H, W, n), or a single stack (n, H, W) of frames of "
        f"{FRAME_PX} x {FRAME_PX} pixels or more."
    )


def _datasets(file: h5py.File) -> list[h5py.Dataset]:
    """List the data sets of a file, those behind links included, each once, by their names."""
    found: dict[Any, h5py.Dataset] = {}
    seen = set()

    def look_into(group: h5py.Group) -> None:
        seen.add(group.id)
        for name in group:
            item = group.get(name)  # None for a link to nothing
            if isinstance(item, h5py.Dataset):
                found.setdefault(item.id, item)
            elif isinstance(item, h5py.Group) and item.id not in seen:
                look_into(item)

    look_into(file["/"])
    return list(found.values())


def _mask(file: h5py.File, shape: tuple[int, ...]) -> np.ndarray | None:
    """Read the mask of the file; one of another name or place only if it fits the frames."""
    if "mask" in file:
        data = file.get("mask")
        numbers = isinstance(data, h5py.Dataset) and data.dtype.kind in "biuf"
        if not numbers or data.shape is None:
            raise FrameShapeError(
                f"{file.filename} has a `mask` that is {data!r}; expected a data set (H, W) of "
                "numbers, nonzero where a pixel is invalid."
            )
        return data[...] != 0
    for data in _datasets(file):
        named = data.name.rsplit("/", 1)[-1] in MASKS
        if named and data.shape == shape[1:] and data.dtype.kind in "biuf":
            return data[...] != 0
    return None


def check_stack(frames: np.ndarray, name: str) -> None:
    """Refuse what is no stack of frames.

    Raises
    ------
    FrameShapeError
        If the frames are not (n, H, W), none of it 0, of numbers.
    """
    if frames.ndim != 3 or 0 in frames.shape or frames.dtype.kind not in "biuf":
        raise FrameShapeError(
            f"{name} has frames of shape {frames.shape} and dtype {frames.dtype}; expected "
            "numbers (n, H, W)."
        )


def without_fraction(counts: np.ndarray) -> np.ndarray:
    """Return counts that are floats without a fraction as integers; others as they are."""
    if counts.dtype.kind == "f" and (counts == np.rint(counts)).all():
        return counts.astype(np.int64)
    return counts


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
        (H, W) bool: masked, negative, or not valid as `valid_pixels` has it.

    Raises
    ------
    FrameShapeError
        If the mask has another shape than the frames.
    MaskError
        If no pixel is left.
    """
    flagged = np.zeros(frames.shape[1:], bool)
    lost = []
    for number, frame in enumerate(frames):
        own = ~valid_pixels(frame)
        if frame.dtype.kind in "if":
            own |= frame < 0
        if own.all():
            lost.append(str(number))
        flagged |= own
    if mask is not None and mask.shape != flagged.shape:
        raise FrameShapeError(
            f"{name} has frames {frames.shape} and mask {mask.shape}; expected (n, H, W), (H, W)."
        )
    invalid = flagged if mask is None else flagged | mask
    if invalid.all():
        told = f" Take out frames {', '.join(lost[:5])}, in which all are." if lost else ""
        raise MaskError(
            f"{name} has no valid pixel: of {flagged.size}, {int(flagged.sum())} are flagged in "
            f"a frame and {int((invalid & ~flagged).sum())} more masked (nonzero means invalid)."
            f"{told}"
        )
    return invalid
