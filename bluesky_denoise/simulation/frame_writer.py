"""An HDF5 file that a simulated detector writes while others read it."""

from pathlib import Path

import h5py
import numpy as np

__all__ = ["DATASET", "FrameWriter"]

DATASET = "/entry/data/data"
"""Where the frames are in the file, as areaDetector's HDF5 plugin has it."""


class FrameWriter:
    """A growing stack of frames, in SWMR mode: one writer, many readers.

    Parameters
    ----------
    path : file to create; its folder is made where missing
    shape : (H, W) of the frames, pixels

    Raises
    ------
    FileExistsError
        If the file exists: frames are never overwritten.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = h5py.File(path, "x", libver="latest")
        self._data = self._file.create_dataset(
            DATASET, (0, *shape), "<u4", maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._file.swmr_mode = True

    def __len__(self) -> int:
        """Count the frames written."""
        return self._data.shape[0]

    def append(self, frame: np.ndarray) -> None:
        """Write one frame, (H, W) counts, and make it readable at once."""
        n = len(self)
        self._data.resize(n + 1, axis=0)
        self._data[n] = frame
        self._data.flush()

    def close(self) -> None:
        """Close the file; what was written stays readable."""
        self._file.close()
