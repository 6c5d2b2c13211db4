"""Denoised frames in HDF5, readable while they are written."""

from pathlib import Path

import h5py
import numpy as np

__all__ = ["FrameStore"]

GROUP = "denoised"


class FrameStore:
    """One HDF5 file of one derived stream, a dataset for each data key.

    Parameters
    ----------
    path :
        The file, which must not exist yet.
    shapes :
        By data key, the shape of one row: (H, W), or (n, H, W) for n frames per event.
    attributes :
        Written to the file as HDF5 attributes: where the frames come from.
    """

    def __init__(
        self, path: Path, shapes: dict[str, tuple[int, ...]], attributes: dict[str, str]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = h5py.File(path, "x", libver="latest")
        self._file.attrs.update(attributes)
        self._datasets = {
            key: self._file.create_dataset(
                f"{GROUP}/{key}",
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(1, *shape),
                dtype=np.float32,
                fillvalue=np.nan,
            )
            for key, shape in shapes.items()
        }
        # From here on readers may open the file while it grows; no dataset can be added.
        self._file.swmr_mode = True

    def append(self, key: str, rows: np.ndarray) -> range:
        """Append rows, and make them readable at once.

        Parameters
        ----------
        key :
            Data key.
        rows : (N, H, W) or (N, n, H, W), float32, counts / s
            The denoised frames.

        Returns
        -------
        range
            Where the rows are in the dataset.
        """
        dataset = self._datasets[key]
        first = dataset.shape[0]
        dataset.resize(first + len(rows), axis=0)
        dataset[first:] = rows
        dataset.flush()
        return range(first, first + len(rows))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
