"""Measured frames that ship with the package, and long references cut from them."""

from dataclasses import dataclass
from importlib import resources

import h5py
import numpy as np

from bluesky_denoise.errors import SettingsError

__all__ = ["Recorded", "recorded_frames", "reference"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A series of frames that a real detector counted."""

    counts: np.ndarray
    """(n, H, W) unsigned integer, raw counts, in the order they were taken."""
    mask: np.ndarray
    """(H, W) bool, True where a pixel is invalid."""
    exposure_s: float
    """Exposure time of each frame, seconds."""
    source: str
    """Where the frames come from, with their licence."""


def recorded_frames(name: str = "i07_line") -> Recorded:
    """Read one of the recorded series that ship with the package.

    Parameters
    ----------
    name : name of the series; ``i07_line`` is a weak specular line on a diffuse
        background, 51 frames of (195, 487) pixels and 1 s

    Returns
    -------
    Recorded

    Raises
    ------
    SettingsError
        If no series of that name ships with the package.
    """
    folder = resources.files("bluesky_denoise.simulation").joinpath("frames")
    names = sorted(f.name[: -len(".h5")] for f in folder.iterdir() if f.name.endswith(".h5"))
    if name not in names:
        raise SettingsError(f"No recorded frames named {name!r}; there are {', '.join(names)}.")
    with resources.as_file(folder.joinpath(f"{name}.h5")) as path, h5py.File(path, "r") as file:
        return Recorded(
            counts=file["frames"][...],
            mask=file["mask"][...].astype(bool),
            exposure_s=float(file.attrs["exposure_s"]),
            source=f"{file.attrs['source']} ({file.attrs['licence']})",
        )


def reference(recorded: Recorded, i: int, half_width: int = 10) -> tuple[np.ndarray, float]:
    """Sum the neighbours of a frame: a longer exposure with noise of its own.

    Frame `i` is left out, so that an error of what is made of it cannot hide in the
    reference.

    Parameters
    ----------
    recorded : the series
    i : index of the frame in the series
    half_width : frames to take on either side, >= 1

    Returns
    -------
    tuple of numpy.ndarray and float
        (H, W) int64, summed counts; and their total exposure, seconds.

    Raises
    ------
    SettingsError
        If the series does not reach `half_width` frames to either side of `i`.
    """
    n = len(recorded.counts)
    if half_width < 1 or not half_width <= i < n - half_width:
        raise SettingsError(
            f"Frame {i} of {n} has no {half_width} frames on either side; "
            f"with half_width={half_width}, take i from {half_width} to {n - half_width - 1}."
        )
    around = recorded.counts[i - half_width : i + half_width + 1].astype(np.int64)
    return around.sum(axis=0) - around[half_width], 2 * half_width * recorded.exposure_s
