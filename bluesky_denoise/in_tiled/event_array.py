"""Frames of a stream in Tiled by their events, and why they cannot be read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from tiled.utils import path_from_uri

from bluesky_denoise.errors import DenoiseError

__all__ = ["EventArray", "is_array", "rows_at_once", "why_no_array", "why_not_read"]

_MOST_ROWS = 16
_MOST_BYTES = 256 << 20


class EventArray:
    """An array of a raw stream in Tiled, one row for each event.

    Events of n frames are (N, n, H, W) in Tiled as they are written. Once the run is validated
    they are as they lie in the file, mostly (N n, H, W), which the old way to join them
    (``concat``) gives from the start.

    Parameters
    ----------
    key :
        Data key of the array.
    array :
        Tiled client of it.
    spec :
        What the descriptor has under the key.

    Raises
    ------
    DenoiseError
        If Tiled has files that it cannot look into.
    """

    def __init__(self, key: str, array: Any, spec: Mapping[str, Any]) -> None:
        self._key, self._array = key, array
        if not is_array(array):
            raise DenoiseError(why_no_array(key, array))
        shape: Sequence[int] = spec.get("shape") or ()
        # Files of areaDetector say by themselves how many frames a point has.
        declared = shape[0] if len(shape) == 3 else 1
        frames = array.metadata.get("frame_per_point") or declared or 1
        self._per_event = int(frames) if len(array.shape) == 3 else 1

    def __len__(self) -> int:
        return self._array.shape[0] // self._per_event

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W), or (N, n, H, W) of N events."""
        frames = (self._per_event,) if self._per_event > 1 else ()
        return (len(self), *frames, *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the frames."""
        return np.dtype(self._array.dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return the rows of successive events: (N, H, W), or (N, n, H, W).

        Raises
        ------
        DenoiseError
            If Tiled fails to read them.
        """
        first, last, _ = rows.indices(len(self))
        n = self._per_event
        try:
            read = np.asarray(self._array[first * n : last * n])
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 422 and not error.response.is_server_error:
                raise
            raise DenoiseError(
                f"Frames of {self._key!r} cannot be read: {why_not_read(error, [self._array])}"
            ) from error
        return read.reshape(-1, n, *read.shape[1:]) if n > 1 else read


def is_array(node: Any) -> bool:
    """Return whether a node of Tiled is an array; files of an unknown kind are not."""
    return hasattr(node, "shape")


def rows_at_once(*arrays: Any) -> int:
    """Return how many rows of arrays are to be read at once: 16, or fewer of large frames."""
    row = sum(math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize for array in arrays)
    return max(1, min(_MOST_ROWS, _MOST_BYTES // max(row, 1)))


def why_no_array(key: str, node: Any) -> str:
    """Say what lies under a data key that is no array, and what to do."""
    spec = node.metadata.get("spec")
    of_spec = f", of Resources with spec {spec!r}," if spec else ""
    return (
        f"Tiled cannot look into the files of {key!r}{of_spec} and has them as files, not as an "
        "array. Have areaDetector's HDF5 plugin write the frames."
    )


def why_not_read(error: Exception, arrays: Iterable[Any]) -> str:
    """Say why Tiled does not give frames; where they are, if a server is there to tell."""
    if not isinstance(error, httpx.HTTPStatusError):
        return " ".join(f"{type(error).__name__}: {error}".split())
    status = error.response.status_code
    validate = "`cat[uid].validate()` corrects what Tiled has"
    if status == 422:  # the message ends with an address
        reason = str(error).partition(" http")[0]
        return f"Tiled was told of another shape than its files have ({reason}); {validate}"
    sources = [source for array in arrays for source in array.data_sources() or ()]
    uris = [asset.data_uri for source in sources for asset in source.assets]
    files = [path_from_uri(uri) for uri in uris if urlsplit(uri).scheme == "file"]
    places = ", ".join(sorted({str(path.parent) for path in files}))
    such = f", such as {files[0].name}," if files else ""
    return (
        f"Tiled answers {status}; either it may not read {places} (`readable_storage`), the "
        f"files{such} are not there, or they hold something else than it was told, and {validate}"
    )
