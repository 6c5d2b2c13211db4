"""The newest frame of a stream, noted as documents come and read when it is wanted."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .errors import DenoiseError
from .frame_keys import frame_keys
from .sources import FrameSource, open_source, read_until

__all__ = ["NewestFrame"]

_READ_S = 2.0


class NewestFrame:
    """Follow the documents of a run, and read its newest frame.

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
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._datum: Mapping[str, Any] | None = None
        self._source: tuple[str, FrameSource] | None = None

    def note(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document."""
        if name == "start":
            self.descriptors.clear()
            self._resources.clear()
            self.event = self._datum = None
        elif name == "descriptor" and doc["name"] == self._stream:
            self.descriptors[doc["uid"]] = doc
            # By its device, raw frames have another key than denoised ones.
            self._key = frame_keys(doc, [self._name]).get(self._name, self._name)
        elif name == "event" and doc["descriptor"] in self.descriptors:
            self.event = doc
        elif name == "stream_resource" and doc["data_key"] == self._key:
            self._resources[doc["uid"]] = doc
        elif name == "stream_datum" and doc["stream_resource"] in self._resources:
            self._datum = doc

    @property
    def is_there(self) -> bool:
        """Whether there is a frame."""
        inline = self.event is not None and self._key in self.event["data"]
        return inline or self._datum is not None

    def reader(self) -> Callable[[], np.ndarray]:
        """Return what reads the newest frame, for a time when no document is held up."""
        if self.event is not None and self._key in self.event["data"]:
            frame = self.event["data"][self._key]
            return lambda: frame
        datum = self._datum
        if datum is None:
            raise DenoiseError(f"There is no frame of {self._key!r} yet.")
        resource = self._resources[datum["stream_resource"]]
        descriptor = self.descriptors[datum["descriptor"]]
        return lambda: self._read(resource, descriptor, datum["indices"]["stop"] - 1)

    def _read(
        self, resource: Mapping[str, Any], descriptor: Mapping[str, Any], index: int
    ) -> np.ndarray:
        if self._source is None or self._source[0] != resource["uid"]:
            if self._source is not None:
                self._source[1].close()
            self._source = resource["uid"], open_source(resource, descriptor)
        return read_until(self._source[1], index, time.monotonic() + _READ_S)
