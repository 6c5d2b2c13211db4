"""The last frames of a stream, noted as documents come and read when one is wanted."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.sources.datum_files import DatumFiles
from bluesky_denoise.sources.frame_keys import frame_keys
from bluesky_denoise.sources.readers import open_source, read_until

__all__ = ["RecentFrames"]

_READ_S = 2.0
_KEPT_BYTES = 256 * 2**20  # of frames inside events; a denoiser is some frames behind its detector
_KEPT_DATUMS = 4096  # whose frames are in files


class _Place(NamedTuple):
    """Where frames of some events are."""

    seq_nums: range
    first: int
    """In the file, that of the first event; of several frames of an event, the first."""
    resource: str
    descriptor: str


class RecentFrames:
    """Follow the documents of a run, and read one of its last frames.

    Parameters
    ----------
    data_key :
        The frames.
    stream :
        The stream that they are in.
    """

    def __init__(self, data_key: str, stream: str) -> None:
        self._name, self._stream = data_key, stream
        self._key = data_key
        self.descriptors: dict[str, Mapping[str, Any]] = {}
        self.event: Mapping[str, Any] | None = None
        self._inside: dict[int, np.ndarray] = {}  # by seq_num, the oldest first
        self._size = 0  # of these
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._datum_files = DatumFiles()
        self._places: deque[_Place] = deque(maxlen=_KEPT_DATUMS)

    def note_datums(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document as its detector sent it, before it goes through a normalizer."""
        if name == "datum":
            self._datum_files.take(doc)
        elif name == "event":
            self._datum_files.note(
                doc, [self._key] if doc["descriptor"] in self.descriptors else ()
            )

    def note(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a run, in which Resource and Datum are stream documents."""
        if name == "start":
            for kept in (self.descriptors, self._resources, self._inside, self._places):
                kept.clear()
            self.event, self._size, self._datum_files = None, 0, DatumFiles()
        elif name == "descriptor" and doc["name"] == self._stream:
            self.descriptors[doc["uid"]] = doc
            # By its device, raw frames have another key than denoised ones.
            self._key = frame_keys(doc, [self._name]).get(self._name, self._name)
        elif name == "event" and doc["descriptor"] in self.descriptors:
            self.event = doc
            if self._key in doc["data"]:
                self._keep(doc["seq_num"], doc["data"][self._key])
        elif name == "stream_resource" and doc["data_key"] == self._key:
            self._resources[doc["uid"]] = doc
        elif name == "stream_datum" and doc["stream_resource"] in self._resources:
            self._places.append(self._place(doc))

    def _place(self, datum: Mapping[str, Any]) -> "_Place":
        first, stop = datum["seq_nums"]["start"], datum["seq_nums"]["stop"]
        index = datum["indices"]["start"]
        if placed := self._datum_files.place(datum, self._key):
            first, stop, index = placed[0], placed[0] + 1, placed[1].start
        return _Place(range(first, stop), index, datum["stream_resource"], datum["descriptor"])

    def _keep(self, seq_num: int, frame: Any) -> None:
        self._drop(seq_num)  # a point that is taken again
        self._inside[seq_num] = np.array(frame)  # the detector may put its next one there
        self._size += self._inside[seq_num].nbytes
        while self._size > _KEPT_BYTES and len(self._inside) > 1:
            self._drop(next(iter(self._inside)))

    def _drop(self, seq_num: int) -> None:
        if seq_num in self._inside:
            self._size -= self._inside.pop(seq_num).nbytes

    @property
    def is_there(self) -> bool:
        """Whether there is a frame."""
        return bool(self._inside or self._places)

    def reader(self, seq_num: int) -> Callable[[], np.ndarray]:
        """Return what reads the frame of an event, for a time when no document is held up.

        Raises
        ------
        DenoiseError
            If the frame has not come yet, or is no longer kept.
        """
        if seq_num in self._inside:
            frame = self._inside[seq_num]
            return lambda: frame
        for place in reversed(self._places):
            if seq_num in place.seq_nums:
                resource = self._resources[place.resource]
                descriptor = self.descriptors[place.descriptor]
                index = place.first + seq_num - place.seq_nums.start
                return lambda: self._read(resource, descriptor, index)
        raise DenoiseError(
            f"The frame of {self._key!r} in event {seq_num} of {self._stream!r} is not at hand."
        )

    def _read(
        self, resource: Mapping[str, Any], descriptor: Mapping[str, Any], index: int
    ) -> np.ndarray:
        return read_until(open_source(resource, descriptor), index, time.monotonic() + _READ_S)
