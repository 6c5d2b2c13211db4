"""Documents of raw runs on their way to the denoiser: a queue that never stalls the RunEngine."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Backlog"]

Taken = tuple[str, Mapping[str, Any], str]
"""Name, document, and why its frames are skipped; empty where they are not."""

logger = logging.getLogger(__name__)

_FULL = "skipped: the queue of the denoiser was full"
_SPANS = ("indices", "seq_nums")
_MOST_BYTES = 64 << 20
"""Of arrays that are taken out at once: they are copied on their way to the denoiser."""
_MOST_WAITING_BYTES = 1 << 30
"""Of arrays that may wait; those of one document always may."""


class _Waiting(NamedTuple):
    name: str
    doc: Mapping[str, Any]
    skipped: str
    """Why its frames are skipped; empty where they are not."""
    frames: bool
    """Whether it has, or had, frames that are to be denoised."""
    size: int
    """Bytes of its arrays."""


class Backlog:
    """Keep documents in order; where too many with frames wait, the frames are skipped.

    Parameters
    ----------
    changed :
        The caller holds it in every call; it is notified when documents are taken out.
    most :
        Most documents with frames that may wait.
    wait_s :
        How long those of a run that find no room may wait for some in all, seconds. A denoiser
        that is slow, and does not stand still, makes room for each of them.
    """

    def __init__(self, changed: threading.Condition, most: int, wait_s: float) -> None:
        self._changed, self._most, self._wait_s = changed, most, wait_s
        self._documents: deque[_Waiting] = deque()
        self._with_frames = self._size = 0
        self._left_s, self._full, self._told = wait_s, False, False

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def with_frames(self) -> int:
        """How many documents wait whose frames are to be denoised."""
        return self._with_frames

    def put(self, name: str, doc: Mapping[str, Any], *, frames: bool) -> None:
        """Append a document.

        Parameters
        ----------
        name, doc :
            The document.
        frames :
            Whether it has frames that are to be denoised, or tells of some. Where there is no
            room for more of those, in documents or in memory, it is appended without them. Others
            need no room, and come without the images that they may have.
        """
        if name == "start":
            self._left_s, self._told = self._wait_s, False
        skipped = "" if not frames or self._make_room(_bytes(name, doc)) else _FULL
        self._with_frames += frames and not skipped
        doc = _copied(name, doc) if frames and not skipped else _without_frames(name, doc)
        size = _bytes(name, doc)
        self._size += size
        self._documents.append(_Waiting(name, doc, skipped, frames, size))

    def skip(self, reason: str) -> None:
        """Give up the frames of all that waits."""
        for index, (name, doc, skipped, frames, size) in enumerate(self._documents):
            if frames and not skipped:
                bare = _without_frames(name, doc)
                self._documents[index] = _Waiting(name, bare, reason, frames, _bytes(name, bare))
                self._size += _bytes(name, bare) - size
        self._with_frames = 0

    def take(self, most: int) -> list[Taken]:
        """Take the oldest out: so many documents, or frames that stream datums tell of.

        Fewer where their arrays are large. Of a long stream datum the rest stays, so that it can
        still be skipped.
        """
        batch: list[Taken] = []
        room = _MOST_BYTES
        while self._documents and most > 0 and room > 0:
            name, doc, skipped, frames, size = self._documents.popleft()
            first, rest = _cut(doc, most) if name == "stream_datum" else (doc, None)
            if rest is not None:
                self._documents.appendleft(_Waiting(name, rest, skipped, frames, size))
            elif frames and not skipped:
                self._with_frames -= 1
            batch.append((name, first, skipped))
            most -= _frames(first) if name == "stream_datum" else 1
            room -= size
            self._size -= size
        self._changed.notify_all()
        return batch

    def clear(self) -> None:
        """Forget all."""
        self._documents.clear()
        self._with_frames = self._size = 0
        self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        """Wait a bounded time for room for a document with so many bytes; tell whether there is."""

        def has_room() -> bool:
            fits = not self._size or self._size + size <= _MOST_WAITING_BYTES
            return self._with_frames < self._most and fits

        if not self._full:
            if has_room() or self._wait_for(has_room):
                return True
            if not self._told:
                self._told = True
                logger.warning(
                    "The denoiser is %d events behind: frames are skipped until it has caught up",
                    self._with_frames,
                )
        # Once full, wait no more for each event, until half of it is done.
        many, large = self._most // 2, _MOST_WAITING_BYTES // 2
        self._full = self._with_frames > many or self._size > large or not has_room()
        return not self._full

    def _wait_for(self, has_room: Callable[[], bool]) -> bool:
        began = time.monotonic()
        found = self._changed.wait_for(has_room, min(self._left_s, threading.TIMEOUT_MAX))
        self._left_s = max(0.0, self._left_s - (time.monotonic() - began))  # inf stays inf
        return found


def _frames(stream_datum: Mapping[str, Any]) -> int:
    """Return how many events a stream datum tells of, 1 at least, and where it is malformed."""
    try:
        # Both are cut.
        return max(1, *(stream_datum[k]["stop"] - stream_datum[k]["start"] for k in _SPANS))
    except (KeyError, TypeError):
        return 1


def _bytes(name: str, doc: Mapping[str, Any]) -> int:
    """Return the size of the arrays in an event, or in a page of them; 0 where it is malformed."""
    if name not in ("event", "event_page"):
        return 0
    try:
        columns = doc["data"].values()
        values = columns if name == "event" else [value for part in columns for value in part]
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
    except (AttributeError, KeyError, TypeError):
        return 0


def _cut(
    stream_datum: Mapping[str, Any], most: int
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Cut a stream datum after so many events; return both parts."""
    if _frames(stream_datum) <= most:
        return stream_datum, None
    first, rest = dict(stream_datum), dict(stream_datum)
    for key in _SPANS:
        span = stream_datum[key]
        first[key] = {**span, "stop": span["start"] + most}
        rest[key] = {**span, "start": span["start"] + most}
    return first, rest


def _copied(name: str, doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event, or a page of them, with arrays that no detector writes its next frame to."""
    if name not in ("event", "event_page") or not _bytes(name, doc):
        return doc
    if name == "event":
        data = {key: _copy(value) for key, value in doc["data"].items()}
    else:
        data = {
            key: _copy(column) if isinstance(column, np.ndarray) else [*map(_copy, column)]
            for key, column in doc["data"].items()
        }
    return {**doc, "data": data}


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _without_frames(name: str, doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an event or a page of them without images, which are what fills the memory."""
    if name not in ("event", "event_page"):
        return doc
    if name == "event_page":
        data = {
            key: [None] * len(column) if len(column) and _is_image(column[0]) else column
            for key, column in doc["data"].items()
        }
    else:
        data = {key: None if _is_image(value) else value for key, value in doc["data"].items()}
    return {**doc, "data": data}


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim >= 2
    rows = isinstance(value, list | tuple) and len(value) and value[0]
    return isinstance(rows, list | tuple | np.ndarray)
