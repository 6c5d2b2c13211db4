"""Events that a message bus has lost, found by their numbers and fetched from Tiled."""

import logging
import time
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from .archive import archived_documents, archived_events, descriptors_of
from .router import DenoiseRouter

__all__ = ["GapFiller"]

logger = logging.getLogger(__name__)

_LOST = "lost on the message bus"
_POLL_S = 0.1


@dataclass
class _Run:
    names: dict[str, str] = field(default_factory=dict)  # descriptor -> stream
    descriptors: dict[str, str] = field(default_factory=dict)  # stream -> descriptor
    last: dict[str, int] = field(default_factory=dict)  # stream -> seq_num of an event
    datums: dict[str, int] = field(default_factory=dict)  # stream -> seq_num of a datum


class GapFiller:
    """Stand in front of a router, and complete what comes over an unreliable transport.

    0MQ drops documents without a word when a subscriber is slow or has not connected
    yet. Events have numbers, so a gap shows: what is missing is read from Tiled, where
    the raw run is written, and goes to the router in its place. What is not there is
    recorded as lost. A run whose start was lost is denoised from Tiled at its stop.

    Parameters
    ----------
    router :
        Takes the completed documents.
    client :
        The Tiled catalog that raw runs are written to, or a function that opens it when it is
        needed; None: gaps are only recorded.
    patience_s :
        How long a missing event may take to appear in Tiled, seconds.
    """

    def __init__(self, router: DenoiseRouter, client: Any = None, patience_s: float = 10.0) -> None:
        self._router, self._client, self._patience_s = router, client, patience_s
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, str] = {}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document from the bus."""
        name = str(name)
        if name == "start":
            self._runs[doc["uid"]] = _Run()
        elif name == "descriptor" and doc["run_start"] in self._runs:
            run = self._runs[doc["run_start"]]
            run.names[doc["uid"]], run.descriptors[doc["name"]] = doc["name"], doc["uid"]
            self._run_of[doc["uid"]] = doc["run_start"]
        elif name == "event":
            self._before(doc["descriptor"], doc["seq_num"], doc["seq_num"])
        elif name == "event_page" and doc["seq_num"]:
            self._before(doc["descriptor"], doc["seq_num"][0], doc["seq_num"][-1])
        elif name == "stream_datum":
            self._datum(doc)
        elif name == "stop":
            self._at_stop(doc)
        self._router(name, doc)

    def _before(self, descriptor: str, first: int, last: int) -> None:
        uid = self._run_of.get(descriptor)
        if uid is None:
            return  # the start or the descriptor was lost: all is done at the stop
        run = self._runs[uid]
        stream = run.names[descriptor]
        expected = run.last.get(stream, 0) + 1
        if first > expected and stream in self._router.settings.streams:
            self._fill(uid, stream, run.names, descriptor, expected, first - 1)
        run.last[stream] = last

    def _datum(self, doc: Mapping[str, Any]) -> None:
        uid = self._run_of.get(doc["descriptor"])
        if uid is not None:
            run = self._runs[uid]
            stream = run.names[doc["descriptor"]]
            run.datums[stream] = max(run.datums.get(stream, 0), doc["seq_nums"]["stop"] - 1)

    def _at_stop(self, doc: Mapping[str, Any]) -> None:
        uid = doc["run_start"]
        run = self._runs.pop(uid, None)
        wanted = {
            stream: number
            for stream, number in (doc.get("num_events") or {}).items()
            if stream in self._router.settings.streams
        }
        if run is None:
            self._whole(uid, wanted)
            return
        for stream, number in wanted.items():
            # Fly scans may have no events: what has come are their datums.
            last = run.last.get(stream, 0) or run.datums.get(stream, 0)
            if last < number:
                self._fill(uid, stream, run.names, run.descriptors.get(stream), last + 1, number)
        for descriptor in run.names:
            self._run_of.pop(descriptor, None)

    def _fill(
        self,
        uid: str,
        stream: str,
        known: Container[str],
        newest: str | None,
        first: int,
        last: int,
    ) -> None:
        """Send the events of a gap to the router: from Tiled, or as lost.

        Parameters
        ----------
        uid, stream :
            Of the run, and the name of its stream.
        known :
            The descriptors that have come.
        newest :
            The one of them that lost events are recorded under; None: none of this stream.
        first, last :
            Numbers of the events.
        """
        descriptors, events, why = self._fetch(uid, stream, first, last)
        found = defaultdict(list)  # more than one where a point was taken again
        for event in events:
            found[event["seq_num"]].append(event)
        sent: set[str] = set()
        for seq_num in range(first, last + 1):
            for event in found.get(seq_num, ()):
                newest = event["descriptor"]  # that of its time: it tells the exposure
                if newest not in known and newest not in sent:
                    self._router.accept("descriptor", descriptors[newest])
                    sent.add(newest)
                # Its frames are inside, whatever the detector says of its files.
                inside = {"filled": dict.fromkeys(event["data"], True)}
                self._router.accept("event", {**event, **inside})
            if seq_num not in found and newest is not None:
                self._router.accept("event", _lost(newest, seq_num), skipped=f"{_LOST}, and {why}")
        logger.warning(
            "Run %.8s, stream %s: events %d to %d were lost on the bus; %d of them came from "
            "Tiled%s",
            *(uid, stream, first, last, len(found)),
            "" if len(found) == last - first + 1 else f", the others are {why}",
        )

    def _fetch(
        self, uid: str, stream: str, first: int, last: int
    ) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], str]:
        """Return the descriptors by uid, the events that are in Tiled, why others are not."""
        descriptors: dict[str, dict[str, Any]] = {}
        events: list[dict[str, Any]] = []
        why = "not in Tiled"
        if self._client is None:
            return descriptors, events, why
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                run = self._catalog()[uid]
                found = list(archived_events(run, stream, first, last))
                descriptors = {doc["uid"]: doc for doc in descriptors_of(run, stream)}
                events, why = found, "not in Tiled"
            except KeyError:
                why = "not in Tiled"
            except Exception as error:
                why = f"not to be read from Tiled ({_in_short(error, self._router)})"
            if (
                len({event["seq_num"] for event in events}) == last - first + 1
                or time.monotonic() >= deadline
            ):
                return descriptors, events, why
            time.sleep(_POLL_S)

    def _whole(self, uid: str, wanted: Mapping[str, int]) -> None:
        """Denoise a run from Tiled whose beginning was lost."""
        if not wanted:
            return
        if self._client is None:
            logger.error("Run %.8s is not denoised: its start was lost on the bus", uid)
            return
        for stream, number in wanted.items():
            self._fetch(uid, stream, 1, number)  # waits until it is there
        try:
            documents = [
                (name, doc)
                for name, doc in archived_documents(
                    self._catalog()[uid], self._router.settings.streams
                )
                if name != "stop"
            ]
        except Exception as error:
            missing = isinstance(error, KeyError)
            logger.error(
                "Run %.8s is not denoised: its start was lost on the bus, and Tiled %s. "
                "`bluesky-denoise catch-up` denoises it later.",
                uid,
                "lacks it" if missing else f"cannot be read ({_in_short(error, self._router)})",
            )
            return
        logger.warning("Run %.8s: its start was lost on the bus; denoised from Tiled", uid)
        self._router.feed(documents)

    def _catalog(self) -> Any:
        if callable(self._client):
            self._client = self._client()
        return self._client


def _in_short(error: Exception, router: DenoiseRouter) -> str:
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    return router.settings.redact(text)


def _lost(descriptor: str, seq_num: int) -> dict[str, Any]:
    return {
        "uid": f"{descriptor}/{seq_num}",
        "descriptor": descriptor,
        "seq_num": seq_num,
        "time": time.time(),
        "data": {},
        "timestamps": {},
        "filled": {},
    }
