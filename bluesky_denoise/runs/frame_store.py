"""Denoised frames in HDF5, readable while they are written."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

__all__ = ["GROUP", "FrameStore", "rounded"]

GROUP = "denoised"

_BITS_KEPT = 12
"""Of the 23 bits behind the point of a float32: the others are noise, which no filter packs."""
_DROPPED = 23 - _BITS_KEPT
_PACKED = hdf5plugin.Bitshuffle()  # with LZ4, as detectors do; a server of Tiled has the filter


def rounded(rates: np.ndarray) -> np.ndarray:
    """Round to the nearest of the numbers that are saved, at most 1 part in 8192 away.

    Parameters
    ----------
    rates : float32
        NaN and infinities stay.

    Returns
    -------
    numpy.ndarray
        float32 of the same shape.
    """
    bits = np.array(rates, np.float32).view(np.uint32)
    even = (bits >> _DROPPED) & 1  # of two that are equally near the even one, so that sums stay
    bits += even + np.uint32((1 << (_DROPPED - 1)) - 1)
    bits &= np.uint32(2**32 - (1 << _DROPPED))
    found = bits.view(np.float32)
    np.copyto(found, rates, where=~np.isfinite(rates))
    return found


class FrameStore:
    """One HDF5 file of one derived stream, a dataset for each data key.

    Frames are `rounded` and compressed.

    Parameters
    ----------
    path :
        The file, which must not exist yet.
    shapes :
        By data key, the shape of one row: (H, W), or (n, H, W) for n frames per event.
    attributes :
        Written to the file as HDF5 attributes: where the frames come from.

    Raises
    ------
    OSError
        If the file cannot be made; nothing is left of it.
    """

    def __init__(
        self, path: Path, shapes: dict[str, tuple[int, ...]], attributes: dict[str, str]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        self.path = path
        try:
            self._file = _begin(path, shapes, attributes)
        except (OSError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            raise OSError(_why(error)) from error
        self._datasets = {key: self._file[f"{GROUP}/{key}"] for key in shapes}
        self._rows = dict.fromkeys(shapes, 0)  # that there should be
        self._readable = dict.fromkeys(shapes, 0)
        self._told = dict.fromkeys(shapes, 0)  # of them, those that `grown` has returned

    def append(self, key: str, rows: np.ndarray) -> None:
        """Append rows, and make them readable at once.

        Rows that cannot be written keep their place, and are NaN.

        Parameters
        ----------
        key :
            Data key.
        rows : (N, H, W) or (N, n, H, W), float32, counts / s
            The denoised frames.

        Raises
        ------
        OSError
            If they cannot be written: the disk is full, or away.
        """
        dataset, first = self._datasets[key], self._rows[key]
        self._rows[key] = last = first + len(rows)
        try:
            dataset.resize(last, axis=0)
            dataset[first:] = rounded(rows)
            dataset.flush()
            self._readable[key] = last
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError, RuntimeError):
                # A place alone takes no room: HDF5 is to forget what it could not write.
                dataset.resize(first, axis=0)
                dataset.resize(last, axis=0)
                dataset.flush()
                self._readable[key] = last
            raise OSError(_why(error)) from error

    def grown(self, key: str) -> range:
        """Return the rows of a data key that have become readable since this was asked last."""
        rows = range(self._told[key], self._readable[key])
        self._told[key] = rows.stop
        return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _begin(
    path: Path, shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, str]
) -> h5py.File:
    """Make an HDF5 file with empty datasets, which readers may open while it grows."""
    file = h5py.File(path, "w", libver="latest")
    try:
        file.attrs.update(attributes)
        for key, shape in shapes.items():
            file.create_dataset(
                f"{GROUP}/{key}",
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(1, *shape),
                dtype=np.float32,
                fillvalue=np.nan,
                **_PACKED,
            )
        file.swmr_mode = True  # from here on no dataset can be added
    except (OSError, RuntimeError):
        with contextlib.suppress(OSError, RuntimeError):
            file.close()
        raise
    return file


def _why(error: Exception) -> str:
    """Return what the system says: h5py raises one or another, with all that HDF5 knows."""
    why = re.search(r"error message = '([^']+)'", str(error))
    return why[1] if why else str(error).partition("\n")[0]
