"""The raw runs that have been handed over and are not done, and what has come of them."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from event_model import compose_run

from bluesky_denoise.documents import Document
from bluesky_denoise.runs.derived_run import start_metadata, stop_document

__all__ = ["OpenRun", "OpenRuns"]


@dataclass
class OpenRun:
    """A raw run that has been handed over and is not done."""

    raw_start: Mapping[str, Any]
    sent: bool = False
    """The child has heard of it."""
    stopped: bool = False
    """Its raw run has ended."""
    derived: list[bytes] = field(default_factory=list)
    """The documents that have come of it: enough to end it, should the child die. They are pickled,
    which takes a third of the memory, and no time of the garbage collector."""
    streams: dict[str, str] = field(default_factory=dict)
    """Names of its derived streams, by uid of their descriptor."""
    num_events: dict[str, int] = field(default_factory=dict)
    """Derived events that have come, by stream."""
    ended: bool = False
    """Its derived run has stopped; it may not be in Tiled yet."""
    cut_short: bool = False
    """A child died of it, and its end has been told: `derived` is all there is."""


class OpenRuns(dict[str, OpenRun]):
    """Open runs by the uid of the raw run.

    Parameters
    ----------
    frames_in_files :
        Derived documents are small then, and are all kept.
    """

    def __init__(self, frames_in_files: bool) -> None:
        super().__init__()
        self._frames_in_files = frames_in_files
        self._raw_of: dict[str, str] = {}  # uid of a derived run or descriptor -> raw run

    def unfinished(self) -> list[str]:
        """Return the raw runs that have ended and are not done."""
        return [uid for uid, run in self.items() if run.stopped]

    def done(self, uid: str) -> None:
        """Forget a run."""
        self.pop(uid, None)
        for key in [key for key, raw in self._raw_of.items() if raw == uid]:
            del self._raw_of[key]

    def follow(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a derived run, and keep what is needed to end it."""
        if name == "start":
            raw = doc["original_run_uid"]
        elif name in ("event", "stream_datum"):
            raw = self._raw_of.get(doc["descriptor"])
        else:
            raw = self._raw_of.get(doc["run_start"])
        if raw not in self:
            return
        if name in ("start", "descriptor"):
            self._raw_of[doc["uid"]] = raw
        run = self[raw]
        if name == "descriptor":
            run.streams[doc["uid"]] = doc["name"]
            run.num_events.setdefault(doc["name"], 0)
        elif name == "event":
            run.num_events[run.streams[doc["descriptor"]]] += 1
        run.ended |= name == "stop"
        if name == "start" or self._frames_in_files:
            run.derived.append(pickle.dumps((name, doc)))

    def end_of(
        self, run: OpenRun, provenance: Mapping[str, Any], reason: str
    ) -> tuple[list[Document], list[Document]]:
        """Return all documents of a run that was cut short, and those of them that are new."""
        derived = [pickle.loads(document) for document in run.derived]
        if run.cut_short or (run.ended and self._frames_in_files):
            return derived, []  # all of it came, and may only not be in Tiled yet
        new: list[Document] = []
        if not derived:
            metadata = start_metadata(run.raw_start, provenance)
            new = [("start", compose_run(metadata=metadata).start_doc)]
        start = (derived or new)[0][1]
        stop = "stop", stop_document(start["uid"], dict(run.num_events), reason)
        derived += [*new, stop]
        run.derived = [pickle.dumps(document) for document in derived]
        if not run.ended:  # else what was not in Tiled yet is lost with the child: say so there
            new.append(stop)
        run.ended = run.cut_short = True
        return derived, new
