"""Masks of invalid pixels, read from arrays and files."""

import logging
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bluesky_denoise.errors import MaskError

__all__ = ["load_mask"]

logger = logging.getLogger(__name__)

_MOST_INVALID = 0.5
"""Of the pixels; gaps and dead modules are less. Others write masks the other way round."""


def load_mask(source: str | Path | np.ndarray) -> np.ndarray:
    """Read a mask of invalid pixels.

    Parameters
    ----------
    source :
        An array (H, W), nonzero where a pixel is invalid; or a file: ``.npy``,
        ``.tif``, or HDF5 (``file.h5``, dataset ``mask``; ``file.h5::/path/of/dataset``
        for another).

    Returns
    -------
    numpy.ndarray
        (H, W) bool, True where a pixel is invalid.

    Raises
    ------
    MaskError
        If the file cannot be read, does not hold a two-dimensional array, or leaves no pixel.
    """
    where = "The mask array" if isinstance(source, np.ndarray) else f"Mask {source}"
    values = source if isinstance(source, np.ndarray) else _read(str(source))
    if not isinstance(values, np.ndarray):
        raise MaskError(
            f"{where} is a {type(values).__name__}; expected an array (H, W) of numbers, nonzero "
            "where a pixel is invalid."
        )
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise MaskError(
            f"{where} has shape {values.shape} and dtype {values.dtype}; "
            "expected (H, W) numbers, nonzero where a pixel is invalid."
        )
    mask = values != 0
    if mask.all():
        raise MaskError(
            f"{where} leaves no pixel of {mask.shape}: nonzero means invalid. Invert it if it "
            "marks the valid pixels."
        )
    if mask.mean() > _MOST_INVALID:
        logger.warning(
            "%s leaves %.2g %% of the pixels of %s: nonzero means invalid. Invert it if it marks "
            "the valid pixels.",
            *(where, 100 * (1 - mask.mean()), mask.shape),
        )
    mask.flags.writeable = False
    return mask


def _read(source: str) -> Any:
    name, _, dataset = source.partition("::")
    name = os.path.expanduser(name)
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(name, allow_pickle=False)
        if suffix in (".h5", ".hdf5", ".hdf", ".nxs"):
            with h5py.File(name) as file:
                found = file[dataset or "mask"]
                return found[()] if isinstance(found, h5py.Dataset) else found
        if suffix in (".tif", ".tiff"):
            return _read_tiff(name)
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise MaskError(f"Mask {source} cannot be read: {error}") from None
    raise MaskError(f"Mask {source} is of an unknown kind; expected .npy, .h5 or .tif.")


def _read_tiff(name: str) -> Any:
    try:
        import tifffile  # optional
    except ImportError:
        raise MaskError(
            f"Mask {name} is a TIFF, which needs the package tifffile: "
            "pip install bluesky-denoise[tiff]."
        ) from None
    try:
        return tifffile.imread(name)
    except tifffile.TiffFileError as error:  # a ValueError in later versions alone
        raise ValueError(str(error)) from None
