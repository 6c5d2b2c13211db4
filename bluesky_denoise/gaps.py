"""What a message bus has lost of runs, found by its numbers and fetched from Tiled."""

import logging
import time
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bluesky_denoise.bus.lost_events import Descriptors, LostEvents
from bluesky_denoise.bus.lost_stops import LostStops
from bluesky_denoise.bus.received import ReceivedStream
from bluesky_denoise.documents import PAGES, unpack_page
from bluesky_denoise.in_tiled.archive import archived_documents
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.derived_run import is_derived
from bluesky_denoise.sources.frame_keys import frame_keys

__all__ = ["GapFiller"]

logger = logging.getLogger(__name__)

_LOST = "lost on the message bus"
_UNCLEAR = "not to be told in Tiled from points taken again, or configured otherwise"


@dataclass
class _Run:
    names: dict[str, str] = field(default_factory=dict)
    """By descriptor, the stream."""
    streams: dict[str, ReceivedStream] = field(default_factory=dict)
    """By name; those that are denoised."""
    keys: dict[str, str] = field(default_factory=dict)
    """By stream resource, the data key."""


class GapFiller:
    """Stand in front of a router, and complete what comes over an unreliable transport.

    0MQ drops documents without a word when a subscriber is slow or has not connected
    yet. Events and stream datums have numbers, so a gap shows; and so does what refers to a
    resource or a datum that has not come. What is missing is read from Tiled, where the raw
    run is written, and goes to the router in its place. What is not there is recorded as
    lost. A run whose start was lost is denoised from Tiled at its stop. After the last event that
    comes no number tells of a gap: whether a run that is open has its end in Tiled is asked when
    another run begins, and by `close`.

    Parameters
    ----------
    router :
        Takes the completed documents.
    client :
        The Tiled catalog that raw runs are written to, or a function that opens it when it is
        needed; None: gaps are only recorded.
    patience_s :
        How long what is missing may take to appear in Tiled, seconds.

    Notes
    -----
    Datums and stream datums are expected before their events, as the RunEngine sends them.
    """

    def __init__(self, router: DenoiseRouter, client: Any = None, patience_s: float = 10.0) -> None:
        self._router = router
        self._lost = LostEvents(client, patience_s, router.settings.redact)
        self._runs: dict[str, _Run] = {}
        self._run_of: dict[str, str] = {}  # descriptor or resource -> run
        self._datums: dict[str, str] = {}  # datum whose event has not come -> run
        self._ended: set[str] = set()  # runs whose stop has come from Tiled
        self._stops = LostStops(self._lost.catalog, self._lost.in_short)

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document from the bus."""
        for stop in self._stops.found():
            self._end(stop)
        self._take(str(name), doc)
        self._router.flush()

    def close(self, timeout: float = 30.0) -> None:
        """Complete the runs that have ended, and whose stops have not come.

        Those that Tiled has no end of stay open; the router ends them when it is closed.

        Parameters
        ----------
        timeout :
            After so many seconds no further run is begun with. Each waits for what it lacks.
        """
        deadline = time.monotonic() + timeout
        self._stops.wait(timeout)  # while it asks, it takes no new question
        if self._lost.has_client:
            self._stops.ask(list(self._runs))
        self._stops.wait(max(0.0, deadline - time.monotonic()))
        for stop in self._stops.found():
            if time.monotonic() > deadline:
                logger.error(
                    "Run %.8s is not complete: its stop was lost on the bus, and Tiled is slow. "
                    "`bluesky-denoise catch-up` completes it later.",
                    stop["run_start"],
                )
                continue
            self._end(stop)
        self._router.flush()

    def _end(self, stop: Mapping[str, Any]) -> None:
        """End a run by the stop that Tiled has, unless that of the bus has come meanwhile."""
        uid = stop["run_start"]
        if uid in self._runs:
            logger.warning("Run %.8s: its stop was lost on the bus; it came from Tiled", uid)
            self._take("stop", stop)
            self._ended.add(uid)

    def _take(self, name: str, doc: Mapping[str, Any]) -> None:
        if name in PAGES:
            for item_name, item in unpack_page(name, doc):
                self._take(item_name, item)
            return
        if name == "event":
            self._event(doc)
            return
        if name == "stream_datum" and not self._stream_datum(doc):
            return
        if name == "start":
            if is_derived(doc):
                return  # results, published on the bus that raw runs come by
            if self._lost.has_client:
                self._stops.ask(list(self._runs), before=doc["time"])
            self._runs[doc["uid"]] = _Run()
        elif name == "descriptor":
            self._descriptor(doc)
        elif name in ("resource", "stream_resource"):
            self._resource(doc)
        elif name == "datum" and doc["resource"] in self._run_of:
            self._datums[doc["datum_id"]] = self._run_of[doc["resource"]]
        elif name == "stop":
            if doc["run_start"] in self._ended:
                return  # it was late
            self._stop(doc)
        self._router.accept(name, doc)

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        run, name, settings = self._runs.get(doc["run_start"]), doc["name"], self._router.settings
        if run is None:
            return
        run.names[doc["uid"]] = name
        self._run_of[doc["uid"]] = doc["run_start"]
        if name in run.streams or name not in settings.streams:
            return
        if wanted := frame_keys(doc, settings.data_keys):
            specs = doc["data_keys"]
            keys = [key for key in wanted.values() if "external" in specs[key]]
            has_events = any(spec.get("external") != "STREAM:" for spec in specs.values())
            run.streams[name] = ReceivedStream(name, doc["uid"], keys, has_events)

    def _resource(self, doc: Mapping[str, Any]) -> None:
        # `run_start` is optional in a resource: then it is the youngest run's.
        uid = doc.get("run_start") or next(reversed(self._runs), "")
        if uid in self._runs:
            self._run_of[doc["uid"]] = uid
            self._runs[uid].keys[doc["uid"]] = doc.get("data_key", "")

    def _stream_of(self, descriptor: str) -> tuple[str, ReceivedStream | None]:
        """Return the uid of a run, and its stream; None: it is not looked after.

        Where start or descriptor were lost, all is done at the stop.
        """
        uid = self._run_of.get(descriptor, "")
        run = self._runs.get(uid)
        return uid, run.streams.get(run.names[descriptor]) if run else None

    def _event(self, doc: Mapping[str, Any]) -> None:
        """Send an event to the router, behind those lost before it, with all its frames."""
        uid, stream = self._stream_of(doc["descriptor"])
        seq_num, skipped, whole = doc["seq_num"], "", doc
        if stream is not None:
            if seq_num <= stream.last:
                self._go_back(uid, stream, seq_num)
            self._fill(uid, stream, seq_num - 1, doc["descriptor"])
            if lacking := self._lacking(stream, doc):
                whole, skipped = self._complete(uid, stream, doc, lacking)
            stream.has_events, stream.unknown, stream.descriptor = True, None, doc["descriptor"]
            stream.last, stream.newest = seq_num, (doc["time"], seq_num)
        for value in doc["data"].values():
            if isinstance(value, str):
                self._datums.pop(value, None)
        self._router.accept("event", whole, skipped=skipped)

    def _lacking(self, stream: ReceivedStream, event: Mapping[str, Any]) -> list[str]:
        """Return the data keys whose frames were lost: those of a datum, or of stream datums."""
        data, filled = event["data"], event.get("filled", {})
        in_streams = stream.lacking(event["seq_num"])
        lost_datums = {
            key
            for key, value in data.items()
            if isinstance(value, str) and not filled.get(key) and value not in self._datums
        }
        return [k for k in stream.keys if k in (lost_datums if k in data else in_streams)]

    def _stream_datum(self, doc: Mapping[str, Any]) -> bool:
        """Fill in what was lost before a stream datum; tell whether it is still of use."""
        uid, stream = self._stream_of(doc["descriptor"])
        key = self._runs[uid].keys.get(doc["stream_resource"]) if stream else None
        if stream is None or (key is not None and key not in stream.keys):
            return True
        first, resource = doc["seq_nums"]["start"], doc["stream_resource"]
        shift = doc["indices"]["start"] - first
        again = stream.shifts.get(resource, shift) != shift
        if stream.unknown and first != stream.unknown.start:
            self._fill(uid, stream, stream.unknown.stop - 1, stream.descriptor)
        expected = min(stream.next.values()) if key is None else stream.next[key]
        if stream.has_events and (key is None or expected <= first <= stream.last):
            return False  # its event will tell that it lacks frames, or went with those of Tiled
        if again or first < expected:
            self._go_back(uid, stream, first)
        stream.shifts[resource] = shift
        stream.repeats |= shift >= 0  # more frames than numbers
        if key is None or first > expected:
            self._fill(uid, stream, first - 1, doc["descriptor"])
        if not stream.has_events:
            stream.descriptor = doc["descriptor"]
        if key is None:  # lost with its stream resource, as what comes next will show
            stream.unknown = range(first, doc["seq_nums"]["stop"])
            return False
        stream.next[key] = doc["seq_nums"]["stop"]
        return True

    def _stop(self, doc: Mapping[str, Any]) -> None:
        """Fill in what was lost at the end of a run, and forget the run."""
        uid = doc["run_start"]
        run = self._runs.get(uid)
        wanted = {
            name: number
            for name, number in (doc.get("num_events") or {}).items()
            if name in self._router.settings.streams
        }
        if run is None:
            self._whole(uid, wanted, "start")
            return
        for name, stream in run.streams.items():
            stream.in_vain = False  # by now all is in Tiled
            self._fill(uid, stream, wanted.pop(name, 0))
        known = set(run.names.values())
        self._whole(uid, {n: k for n, k in wanted.items() if n not in known}, "descriptor")
        del self._runs[uid]
        self._run_of = {key: of for key, of in self._run_of.items() if of != uid}
        self._datums = {key: of for key, of in self._datums.items() if of != uid}

    def _go_back(self, uid: str, stream: ReceivedStream, seq_num: int) -> None:
        """Take points again from a number on, as after a pause."""
        self._fill(uid, stream, stream.begun(), stream.descriptor, again=True)
        self._router.go_back(stream.descriptor)
        stream.go_back(seq_num)

    def _fill(
        self,
        uid: str,
        stream: ReceivedStream,
        last: int,
        descriptor: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Send to the router what has not come: from Tiled, or as lost.

        Parameters
        ----------
        uid, stream :
            Of the run, and what has come of its stream.
        last :
            Up to the event with this number all should have come.
        descriptor :
            Of what comes behind; empty: the run is over.
        again :
            What comes behind is of points that are taken again.
        """
        first = stream.first_lost()
        if first > last:
            return
        if stream.has_events:
            descriptors, events, why = self._lost.search(uid, stream, first, last)
        else:
            descriptors, events, why = self._search_rows(uid, stream, first, last, descriptor)
        by_number = defaultdict(list)  # more than one where a point was taken again
        for event in events:
            by_number[event["seq_num"]].append(event)
        found, known, newest = 0, set(self._runs[uid].names), stream.descriptor
        for seq_num in range(first, last + 1):
            came = set(stream.keys).difference(stream.lacking(seq_num))
            of_number, reason = by_number[seq_num], why
            if came and again:
                of_number = of_number[:1]
            elif came and len(of_number) > 1:  # which of them has the frames that came?
                of_number, reason = [], _UNCLEAR
            for event in of_number:
                newest = event["descriptor"]  # that of its time: it tells the exposure
                if newest not in known:
                    self._router.accept("descriptor", descriptors[newest])
                    known.add(newest)
                self._router.accept("event", _without(event, came, filled=True))
                stream.newest = (event["time"], seq_num)
            if of_number:
                found += 1
            else:
                reason = f"{_LOST}, and {reason}"
                self._router.accept("event", _lost(newest, seq_num), skipped=reason)
        _warn(uid, stream, first, last, found, why)
        if not stream.has_events:
            stream.unknown = None
            stream.next = {key: max(number, last + 1) for key, number in stream.next.items()}
        stream.last = last

    def _search_rows(
        self, uid: str, stream: ReceivedStream, first: int, last: int, descriptor: str
    ) -> tuple[Descriptors, list[dict[str, Any]], str]:
        """Search the rows of a stream without events, which have neither number nor time."""
        if stream.repeats or descriptor not in ("", stream.descriptor):
            return {}, [], _UNCLEAR
        descriptors, events, why = self._lost.search(uid, stream, first, last)
        if not descriptor:
            more = self._lost.fetch(uid, stream, last + 1, last + 1, 0.0)[1]
            if more or stream.descriptor != next(reversed(descriptors), stream.descriptor):
                return {}, [], _UNCLEAR
        return descriptors, [{**e, "descriptor": stream.descriptor} for e in events], why

    def _complete(
        self, uid: str, stream: ReceivedStream, event: Mapping[str, Any], lacking: Sequence[str]
    ) -> tuple[Mapping[str, Any], str]:
        """Return an event with the frames that it lacks inside, or without them and the reason."""
        seq_num = event["seq_num"]
        stream.newest = (event["time"], seq_num - 1)  # the point may have been taken before
        _, events, why = self._lost.search(uid, stream, seq_num, seq_num)
        own = next((e for e in events if e["time"] == event["time"]), None)
        _warn(uid, stream, seq_num, seq_num, int(own is not None), why)
        bare = _without(event, lacking)
        if own is None:
            return bare, f"{_LOST}, and {why}"
        data = bare["data"] | {key: own["data"][key] for key in lacking}
        timestamps = bare["timestamps"] | {key: own["timestamps"][key] for key in lacking}
        filled = bare["filled"] | dict.fromkeys(lacking, True)
        return {**bare, "data": data, "timestamps": timestamps, "filled": filled}, ""

    def _whole(self, uid: str, wanted: Mapping[str, int], lost: str) -> None:
        """Denoise from Tiled what has lost its start or its descriptor, as `lost` says."""
        if not wanted:
            return
        what = f"Run {uid:.8}" if lost == "start" else f"Run {uid:.8}, stream {', '.join(wanted)}"
        if not self._lost.has_client:
            logger.error("%s is not denoised: its %s was lost on the bus", what, lost)
            return
        self._lost.wait_for(uid, wanted)
        streams = self._router.settings.streams if lost == "start" else tuple(wanted)
        have = ("stop",) if lost == "start" else ("start", "stop")
        logger.warning("%s: its %s was lost on the bus; it is denoised from Tiled", what, lost)
        try:
            for kind, doc in archived_documents(self._lost.catalog()[uid], streams):
                if kind not in have:
                    self._router(kind, doc)
        except Exception as error:
            missing = isinstance(error, KeyError)
            logger.error(
                "%s is not denoised to its end: its %s was lost on the bus, and Tiled %s. "
                "`bluesky-denoise catch-up` denoises it later.",
                *(what, lost),
                "lacks it" if missing else f"cannot be read ({self._lost.in_short(error)})",
            )


def _warn(uid: str, stream: ReceivedStream, first: int, last: int, found: int, why: str) -> None:
    logger.warning(
        "Run %.8s, stream %s: events %d to %d were lost on the bus, or frames of theirs; %d of "
        "them came from Tiled%s",
        *(uid, stream.name, first, last, found),
        "" if found == last - first + 1 else f", the others are {why}",
    )


def _without(
    event: Mapping[str, Any], keys: Container[str], filled: bool | None = None
) -> dict[str, Any]:
    """Return an event without some data keys; `filled`, if given, is what the others are."""
    parts = {
        part: {key: value for key, value in event.get(part, {}).items() if key not in keys}
        for part in ("data", "timestamps", "filled")
    }
    if filled is not None:
        parts["filled"] = dict.fromkeys(parts["data"], filled)
    return {**event, **parts}


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
