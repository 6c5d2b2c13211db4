"""One raw run on its way through the denoiser."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

from .derived import DerivedRun
from .derived_stream import DerivedEvent
from .errors import FrameNotReady
from .raw_stream import RawStream, Row, open_stream
from .row_denoiser import RowDenoiser
from .settings import DenoiseSettings
from .sources import FrameSource, open_source, read_until

if TYPE_CHECKING:
    from .router import DenoiserLike

__all__ = ["DenoisedRun"]

logger = logging.getLogger(__name__)


class DenoisedRun:
    """Follow one raw run: collect its frames, denoise them, emit the derived run.

    Parameters
    ----------
    start :
        The raw start document.
    settings :
        What to denoise.
    denoiser :
        What denoises.
    provenance :
        Goes into the derived start document.
    emit :
        Called with ``(name, doc)`` of the derived run.
    """

    def __init__(
        self,
        start: Mapping[str, Any],
        settings: DenoiseSettings,
        denoiser: "DenoiserLike",
        provenance: Mapping[str, Any],
        emit: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.uid: str = start["uid"]
        self._settings = settings
        self._denoiser = RowDenoiser(self.uid, settings, denoiser)
        self._derived = DerivedRun(
            start, provenance, emit, settings.frames_directory, settings.save_sigma
        )
        self._streams: dict[str, RawStream] = {}  # by uid of the descriptor
        self._by_name: dict[str, RawStream] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._sources: dict[str, FrameSource] = {}
        self._unreadable: set[str] = set()  # stream resources that have missed a deadline
        self._datums: dict[str, int] = {}  # datum id -> seq_num
        self._skipping = ""
        self._known: DerivedEvent | None = None
        self._problems: list[str] = []
        self._skipped = 0
        # Resource and Datum become StreamResource and StreamDatum: one path for all.
        self._normalizer = RunNormalizer()
        self._normalizer.subscribe(self._normalized)

    def accept(
        self,
        name: str,
        doc: Mapping[str, Any],
        *,
        skipped: str = "",
        known: DerivedEvent | None = None,
    ) -> None:
        """Take a document of this run, other than start and stop."""
        if name == "event":
            self._remember_datums(doc)
        self._skipping, self._known = skipped, known
        self._normalizer(name, doc)

    def stop(self, doc: Mapping[str, Any]) -> None:
        """Take the raw stop document: denoise what waits, and end the derived run."""
        try:
            self._normalizer("stop", doc)
        except RuntimeError as error:  # an event refers to a datum that never came
            self._problem(str(error))
        self.flush(final=True)
        status = doc.get("exit_status", "success")
        reason = "; ".join([doc.get("reason") or "", *self._problems]).strip("; ")
        self.close("fail" if self._problems else status, reason)

    def close(self, exit_status: str, reason: str) -> None:
        """End the derived run, if anything came of it."""
        if self._skipped:
            logger.warning("Run %.8s: %d events were skipped", self.uid, self._skipped)
        if self._by_name or self._problems:
            self._derived.close(exit_status, reason)
            logger.info("Run %.8s: denoised %s", self.uid, self._derived.num_events)

    # Documents, normalized ------------------------------------------------------------

    def _normalized(self, name: str, doc: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_{name}", None)
        if handler is not None:
            handler(doc)

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        stream = open_stream(doc, self._settings, self._problem)
        if stream is None:
            return
        # A second descriptor of the same stream carries a new configuration on.
        if known := self._by_name.get(doc["name"]):
            self.flush()  # what waits was taken with the old configuration
            stream.rows = known.rows
        self._streams[doc["uid"]] = self._by_name[doc["name"]] = stream

    def _stream_of(self, doc: Mapping[str, Any]) -> RawStream | None:
        """Return the stream of an event or stream datum, with the configuration of its time."""
        stream = self._streams.get(doc["descriptor"])
        if stream is not None and stream is not self._by_name[stream.descriptor["name"]]:
            self.flush()  # what waits was taken with another configuration
            self._by_name[stream.descriptor["name"]] = stream
        return stream

    def _event(self, doc: Mapping[str, Any]) -> None:
        stream = self._stream_of(doc)
        if stream is None:
            return
        known = stream.rows.get(doc["seq_num"])
        if known and known.event:
            self.flush()  # the point is taken again after a pause: both are denoised
        row = self._row(stream, doc["seq_num"])
        row.event = doc
        for name, key in stream.raw_keys.items():
            if key in doc["data"]:
                row.waiting[name] = lambda value=doc["data"][key]: value

    def _stream_resource(self, doc: Mapping[str, Any]) -> None:
        self._resources[doc["uid"]] = doc

    def _stream_datum(self, doc: Mapping[str, Any]) -> None:
        stream = self._stream_of(doc)
        resource = self._resources.get(doc["stream_resource"])
        if stream is None or resource is None:
            return
        name = next((n for n, k in stream.raw_keys.items() if k == resource["data_key"]), None)
        if name is None:
            return
        indices, seq_nums = doc["indices"], doc["seq_nums"]
        first = self._datums.pop(doc["uid"], seq_nums["start"])
        for offset in range(indices["stop"] - indices["start"]):
            index = indices["start"] + offset
            known = stream.rows.get(first + offset)
            if known and known.event and (name in known.waiting or name in known.done):
                self.flush()  # as for an event
            row = self._row(stream, first + offset)
            row.waiting[name] = lambda index=index: self._read(resource, stream, index)

    def _remember_datums(self, doc: Mapping[str, Any]) -> None:
        """Keep which event a datum belongs to: the normalizer numbers them by itself."""
        stream = self._streams.get(doc["descriptor"])
        for key in stream.raw_keys.values() if stream else ():
            if isinstance(doc["data"].get(key), str):
                self._datums[doc["data"][key]] = doc["seq_num"]

    def _row(self, stream: RawStream, seq_num: int) -> Row:
        row = stream.row(seq_num, self._skipping)
        if self._known is not None:
            row.result = self._known
            row.done.update(stream.names)
        return row

    def _read(self, resource: Mapping[str, Any], stream: RawStream, index: int) -> np.ndarray:
        uid = resource["uid"]
        if uid not in self._sources:
            self._sources[uid] = open_source(resource, stream.descriptor)
        # A file that has missed one deadline must not cost another one for each frame.
        patience = 0.0 if uid in self._unreadable else self._settings.read_timeout_s
        try:
            frames = read_until(self._sources[uid], index, time.monotonic() + patience)
        except FrameNotReady:
            self._unreadable.add(uid)
            raise
        self._unreadable.discard(uid)
        return frames

    # Results --------------------------------------------------------------------------

    def flush(self, *, final: bool = False) -> None:
        """Denoise the frames that wait, and emit the events that they complete.

        Parameters
        ----------
        final :
            The run is over: what has not come will not come.
        """
        for stream in self._by_name.values():
            try:
                self._denoiser.denoise(stream, final)
                self._emit_rows(stream, final)
            except Exception as error:
                logger.exception("Run %.8s: denoising failed", self.uid)
                self._problem(f"{type(error).__name__}: {error}")
                stream.rows.clear()

    def _emit_rows(self, stream: RawStream, final: bool) -> None:
        """Emit the rows that are complete, in order."""
        ready: list[DerivedEvent] = []
        last = max(stream.rows, default=0)
        for seq_num in sorted(stream.rows):
            row = stream.rows[seq_num]
            complete = not stream.lacks(row)
            # Fly scans with stream datums send no events: the next row tells that none comes.
            if not final and not (complete and (row.event or seq_num < last)):
                break
            if row.event is None and not row.done:
                del stream.rows[seq_num]
                continue
            ready.append(self._complete(stream, row, final))
            del stream.rows[seq_num]
        for first in range(0, len(ready), self._settings.batch_size):
            self._derived.add(
                stream.named, stream.regions, ready[first : first + self._settings.batch_size]
            )

    def _complete(self, stream: RawStream, row: Row, final: bool) -> DerivedEvent:
        result = row.result
        if row.event:
            result.time = row.event["time"]
            result.data, result.timestamps = row.event["data"], row.event["timestamps"]
        if row.skipped:
            result.problems.append(row.skipped)
            self._skipped += 1
        if final and (missing := stream.lacks(row)):
            result.problems.append(f"no frames came for {', '.join(missing)}")
        result.latency_s = time.monotonic() - row.arrived
        return result

    def _problem(self, reason: str) -> None:
        logger.error("Run %.8s goes on undenoised: %s", self.uid, reason)
        self._problems.append(reason)
