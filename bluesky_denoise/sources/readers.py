"""Frames behind a stream resource, read while the scan goes on.

One class for each kind of file. All three ways in which Bluesky carries frames end
here or inside an event: `RunNormalizer` of bluesky-tiled-plugins turns Resource and
Datum into StreamResource and StreamDatum before this module sees them.
"""

import errno
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors compress with)
import numpy as np
from bluesky_tiled_plugins.writing.consolidators import (
    CONSOLIDATOR_REGISTRY,
    consolidator_factory,
)
from bluesky_tiled_plugins.writing.tiled_writer import MIMETYPE_LOOKUP
from tiled.ndslice import NDSlice
from tiled.utils import path_from_uri

from bluesky_denoise.errors import DenoiseError, FrameNotReady, FrameShapeError
from bluesky_denoise.frame_checks import as_counts
from bluesky_denoise.sources.frame_keys import TAKE_ONE
from bluesky_denoise.sources.stored_rows import are_stored

__all__ = [
    "SOURCES",
    "AdapterSource",
    "FrameSource",
    "HDF5Source",
    "as_stack",
    "open_source",
    "read_until",
]

_POLL_S = 0.02
_WRITTEN = (
    "While a file is written, its frames can be read if the writer is in SWMR mode, and flushes "
    "each of them (areaDetector: SWMRMode On, NumFramesFlush 1)"
)
_ELSEWHERE = (
    "Where the IOC sees the files under another path than this machine, the documents must have "
    "the one here (ophyd: read_path_template; ophyd-async: directory_uri of the PathInfo)"
)


class FrameSource(Protocol):
    """Frames of one data key in one stream resource."""

    def read(self, index: int) -> np.ndarray:
        """Return the frames of one stream-datum index, (n, H, W), or (H, W) if n is 1.

        Raises
        ------
        Exception
            If they are not readable yet; the caller tries again until a deadline.
        """


class HDF5Source:
    """A dataset in an HDF5 file that may still be growing (SWMR).

    Parameters
    ----------
    resource :
        The stream resource; its parameter ``dataset`` names the dataset.
    descriptor :
        The raw descriptor; the shape of its data key tells the frames per event.
    """

    def __init__(self, resource: Mapping[str, Any], descriptor: Mapping[str, Any]) -> None:
        self._path = path_from_uri(resource["uri"])
        self._name = resource["parameters"].get("dataset") or "/entry/data/data"
        shape = descriptor["data_keys"][resource["data_key"]]["shape"]
        declared = math.prod(size or 1 for size in shape[:-2])
        self._per_index = int(resource["parameters"].get("multiplier") or declared)

    def read(self, index: int) -> np.ndarray:
        """Return the frames of one index, (n, H, W)."""
        # Opened for each read: a file that is kept open does not show what was added, and HDF5's
        # own `refresh` makes wrong frames of all later reads if the process has it open twice.
        with _opened(self._path) as file:
            dataset = file.get(self._name)
            if not isinstance(dataset, h5py.Dataset):  # nothing, or a group
                raise LookupError(_no_dataset(file, self._name))
            stacked = dataset.ndim > 3  # (N, n, H, W) rather than (N * n, H, W)
            if dataset.ndim == 2:
                if index:
                    raise IndexError(f"1 frame in the file, {index + 1} promised. {_WRITTEN}")
                return dataset[()]
            first, count = (index, 1) if stacked else (index * self._per_index, self._per_index)
            available = dataset.shape[0]
            if available < first + count:
                raise IndexError(
                    f"{available} frames in the file, {first + count} promised. {_WRITTEN}"
                )
            if not are_stored(dataset, slice(first, first + count)):
                raise IndexError("the file has a place for it, in which nothing is written")
            frames = dataset[first : first + count]
        return frames[0] if stacked else frames


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", swmr=True, libver="latest")
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise OSError(f"{error}. {_WRITTEN}") from None


def _no_dataset(file: h5py.File, name: str) -> str:
    """Say where the frames of a file may be instead."""
    stacks: list[str] = []

    def look_at(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim > 2:
            stacks.append(item.name)

    file.visititems(look_at)
    held = f"it has frames in {', '.join(stacks)}" if stacks else "nor other frames"
    return (
        f"{file.filename} has no dataset {name!r}, {held}. Where a layout puts them elsewhere, the "
        "documents must say so: `dataset` in the resource_kwargs of the Resource, or in the "
        "parameters of the StreamResource"
    )


class AdapterSource:
    """Files that Tiled's own adapters read: a series of TIFF, JPEG or npy; parts of a data set.

    Parameters
    ----------
    resource :
        The stream resource; with a file name template, there is one file for each index.
    descriptor :
        The raw descriptor.
    """

    def __init__(self, resource: Mapping[str, Any], descriptor: Mapping[str, Any]) -> None:
        self._resource, self._descriptor = resource, descriptor

    def read(self, index: int) -> np.ndarray:
        """Return the frames of one index, (n, H, W)."""
        # The consolidator writes into the parameters of some kinds.
        resource = {**self._resource, "parameters": dict(self._resource["parameters"])}
        consolidator = consolidator_factory(resource, self._descriptor)
        series = bool(resource["parameters"].get("template"))
        span = {"start": index if series else 0, "stop": index + 1}
        consolidator.consume_stream_datum({"indices": span, "seq_nums": span})
        adapter = consolidator.init_adapter()
        rows = adapter.structure().shape[0]
        rows //= span["stop"] - span["start"]  # of this index
        try:
            array = np.asarray(adapter.read(NDSlice(slice(-rows, None))))
        except ValueError as error:  # or the file is half-written
            shape = self._descriptor["data_keys"][resource["data_key"]]["shape"]
            raise ValueError(
                f"{error}; the descriptor has {tuple(shape)} for a point. {TAKE_ONE}"
            ) from None
        return array.reshape(-1, *array.shape[-2:])


SOURCES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], FrameSource]] = {
    "application/x-hdf5": HDF5Source
}
"""Source by mimetype; a new kind of file is one entry. Others that Tiled reads:
`AdapterSource`."""


def open_source(resource: Mapping[str, Any], descriptor: Mapping[str, Any]) -> FrameSource:
    """Return the source for the frames of a stream resource.

    Raises
    ------
    DenoiseError
        If nothing is known that reads files of this kind.
    """
    mimetype, spec = resource["mimetype"], resource["parameters"].get("spec")
    # One file, all of it; of others Tiled's own readers know the parts.
    plain = not any(resource["parameters"].get(key) for key in ("template", "slice", "squeeze"))
    kind = SOURCES.get(mimetype) if plain else None
    # Looked up anew: a beamline may have registered a kind of its own.
    read_by_tiled = {k for k, v in CONSOLIDATOR_REGISTRY.items() if hasattr(v, "init_adapter")}
    if kind is None and mimetype not in read_by_tiled:
        came, known = (spec, MIMETYPE_LOOKUP) if spec else (mimetype, {*SOURCES, *read_by_tiled})
        raise DenoiseError(
            f"{resource['uri']} is of a kind that cannot be read, {came!r}; expected one of "
            f"{', '.join(sorted(known))}. Files of an Eiger's own (AD_EIGER) are not read by Tiled "
            "either: have areaDetector's HDF5 plugin write the frames."
        )
    return (kind or AdapterSource)(resource, descriptor)


def read_until(source: FrameSource, index: int, deadline: float) -> np.ndarray:
    """Read frames that may not be in the file yet.

    Parameters
    ----------
    source :
        Where the frames are.
    index :
        Index of the stream datum.
    deadline :
        On the clock `time.monotonic`, seconds.

    Raises
    ------
    FrameNotReady
        If they are not readable at the deadline.
    """
    while True:
        try:
            return source.read(index)
        # Each library has errors of its own for a half-written file: EOFError, struct.error, …
        except Exception as error:
            if time.monotonic() >= deadline:
                reason = str(error.args[0] if isinstance(error, KeyError) else error)
                reason = reason or type(error).__name__
                if isinstance(error, FileNotFoundError):
                    reason = f"{reason}. {_ELSEWHERE}"
                raise FrameNotReady(f"frame {index} is not readable: {reason}") from None
            time.sleep(_POLL_S)


def as_stack(frames: Any, data_key: str) -> np.ndarray:
    """Return frames as (n, H, W), whatever leading axes of length 1 they came with.

    Raises
    ------
    FrameShapeError
        If they are not two- or three-dimensional, or have colours on their last axis.
    FrameValueError
        If they are an array of numpy.ma that masks pixels.
    """
    array = as_counts(frames)
    came = array.shape
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]  # (H, W) -> (1, H, W)
    if array.ndim == 3 and array.shape[2] <= 4 < min(array.shape[:2]):
        raise FrameShapeError(
            f"{data_key!r} has shape {came}, which is colours; expected (H, W) or (n, H, W) frames "
            "of counts (areaDetector: ColorMode Mono)"
        )
    if array.ndim != 3 or 0 in array.shape:
        raise FrameShapeError(f"{data_key!r} has shape {came}; expected (H, W) or (n, H, W) frames")
    return array
