"""Which raw event came last: what a plan that waits for its result waits for."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from bluesky_denoise.sources.frame_keys import frame_keys

__all__ = ["LastEvent", "RawEvent"]

logger = logging.getLogger(__name__)


class RawEvent(NamedTuple):
    """A raw event that carries frames."""

    run_uid: str
    """The uid of its run."""
    stream: str
    """Name of its stream."""
    seq_num: int
    """Its number in the stream, from 1."""
    time: float
    """Seconds since the epoch; 0 where only a stream datum has come of it. A point that is
    taken again after a pause has the same ``seq_num`` and a later time."""
    since: str = ""
    """Name of a stream that is not denoised, if frames have gone into it since."""


class LastEvent:
    """Follow raw documents, and know the last event with frames of the running run.

    Parameters
    ----------
    streams :
        The streams that are denoised.
    data_keys :
        The data keys or devices that are denoised; None: every two-dimensional detector key.
    """

    def __init__(
        self, streams: tuple[str, ...] = ("primary",), data_keys: tuple[str, ...] | None = None
    ) -> None:
        self._streams, self._data_keys = streams, data_keys
        # By uid of the descriptor: run and stream; and the raw keys of its frames.
        self._followed: dict[str, tuple[str, str]] = {}
        self._frames: dict[str, set[str]] = {}
        self._others: dict[str, tuple[str, str]] = {}  # as followed, of frames that are not
        self._resources: dict[str, tuple[str, str]] = {}  # stream resource -> run, data key
        self._events: dict[str, RawEvent] = {}  # by open run, that of the newest event last
        self._of_streams: dict[tuple[str, str], RawEvent] = {}  # the newest, by open run and stream

    @property
    def value(self) -> RawEvent | None:
        """None before the first event, and once all runs with events have ended."""
        return next(reversed(self._events.values()), None)

    def of_stream(self, run_uid: str, stream: str) -> RawEvent | None:
        """Return the last event of a stream; None where its run is not open."""
        return self._of_streams.get((run_uid, stream))

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a raw run; never raises, as it may be subscribed to a RunEngine."""
        try:
            self._take(str(name), doc)
        except Exception:
            logger.exception("A %s document could not be followed; plans do not wait for it", name)

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name == "descriptor":
            frames, stream = frame_keys(doc, self._data_keys), (doc["run_start"], doc["name"])
            if frames and doc["name"] in self._streams:
                self._followed[doc["uid"]] = stream
                self._frames[doc["uid"]] = set(frames.values())
            elif frames:
                self._others[doc["uid"]] = stream
        elif name == "stream_resource":
            self._resources[doc["uid"]] = doc.get("run_start", ""), doc["data_key"]
        elif name in ("event", "event_page", "stream_datum"):
            self._event(name, doc)
        elif name == "stop":
            uid = doc["run_start"]
            self._followed = {key: run for key, run in self._followed.items() if run[0] != uid}
            self._frames = {key: self._frames[key] for key in self._followed}
            self._others = {key: run for key, run in self._others.items() if run[0] != uid}
            self._resources = {key: of for key, of in self._resources.items() if of[0] != uid}
            self._events.pop(uid, None)
            self._of_streams = {key: of for key, of in self._of_streams.items() if key[0] != uid}

    def has_frames(self, name: str, doc: Mapping[str, Any]) -> bool:
        """Tell whether an event, a page of events or a stream datum brings frames to be denoised.

        An event whose frames stream datums tell of brings none.
        """
        keys = self._frames.get(doc["descriptor"], set())
        if name == "stream_datum":
            return self._resources.get(doc["stream_resource"], ("", ""))[1] in keys
        return not keys.isdisjoint(doc["data"])

    def _event(self, name: str, doc: Mapping[str, Any]) -> None:
        run = self._followed.get(doc["descriptor"])
        if run is None:
            uid, stream = self._others.get(doc["descriptor"], ("", ""))
            if uid in self._events:
                self._events[uid] = self._events[uid]._replace(since=stream)
            return
        if name == "event":
            seq_num, time = doc["seq_num"], doc["time"]
        elif name == "event_page":
            seq_num, time = doc["seq_num"][-1], doc["time"][-1]
        else:
            seq_num, time = doc["seq_nums"]["stop"] - 1, 0.0
            known = self._events.get(run[0])
            if known and known[:2] == run and known.seq_num >= seq_num:
                return
        self._events.pop(run[0], None)
        self._events[run[0]] = self._of_streams[run] = RawEvent(*run, seq_num, time)
