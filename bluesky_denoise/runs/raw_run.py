"""One raw run on its way through the denoiser."""

import difflib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

from bluesky_denoise.errors import FrameNotReady
from bluesky_denoise.frames import DenoiserLike
from bluesky_denoise.runs.derived_run import DerivedRun, ExitStatus
from bluesky_denoise.runs.derived_stream import DerivedEvent
from bluesky_denoise.runs.raw_stream import RawStream, Row, open_stream
from bluesky_denoise.runs.row_denoiser import RowDenoiser
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.sources.datum_files import DatumFiles
from bluesky_denoise.sources.frame_keys import frame_keys, is_frame_key, left_out, not_found
from bluesky_denoise.sources.readers import FrameSource, as_stack, open_source, read_until
from bluesky_denoise.sources.resources import RESOURCE_PATCHES

__all__ = ["DenoisedRun"]

logger = logging.getLogger(__name__)

_PATIENCE = 3
"""Frames that nothing has announced are waited for so many times `read_timeout_s`."""


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
        denoiser: DenoiserLike,
        provenance: Mapping[str, Any],
        emit: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self.uid: str = start["uid"]
        self._settings = settings
        self._motors: Sequence[str] = start.get("motors") or ()
        self._denoiser = RowDenoiser(self.uid, settings, denoiser)
        self._derived = DerivedRun(
            start, provenance, emit, settings.frames_directory, settings.save_sigma
        )
        self._streams: dict[str, RawStream] = {}  # by uid of the descriptor
        self._by_name: dict[str, RawStream] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._sources: dict[str, FrameSource] = {}
        self._unreadable: set[str] = set()  # stream resources that have missed a deadline
        self._datum_files = DatumFiles()
        self._skipping = ""
        self._known: DerivedEvent | None = None
        self._passed_over: dict[str, set[str]] = {}  # frames of streams that are not wanted
        self._left_out: set[str] = set()  # images that the log has said are not denoised
        self._not_found: set[str] = set()  # of `data_keys`, as the log has said
        self._problems: list[str] = []
        self._skipped = 0
        # Resource and Datum become StreamResource and StreamDatum: one path for all.
        self._normalizer = RunNormalizer(RESOURCE_PATCHES)
        self._normalizer.subscribe(self._normalized)

    def accept(
        self,
        name: str,
        doc: Mapping[str, Any],
        *,
        skipped: str = "",
        known: DerivedEvent | None = None,
    ) -> None:
        """Take a document of this run, other than start and stop; no pages."""
        if name == "event":
            stream = self._streams.get(doc["descriptor"])
            self._datum_files.note(doc, stream.raw_keys.values() if stream else ())
        elif name == "datum":
            self._datum_files.take(doc)
        self._skipping, self._known = skipped, known
        self._normalizer(name, doc)

    def stop(self, doc: Mapping[str, Any]) -> None:
        """Take the raw stop document: denoise what waits, and end the derived run."""
        # The normalizer would end at the first event whose datum never came.
        references, datums = self._normalizer._ext_ref_cache, self._normalizer._datum_cache
        lost = [r for r in references if r.datum_id not in datums]
        references[:] = [r for r in references if r.datum_id in datums]
        if lost:
            self._problem(f"{len(lost)} Datum documents never came, such as {lost[0].datum_id}")
        self._normalizer("stop", doc)
        self.flush(final=True)
        self._tell_of_other_streams()
        status: ExitStatus = doc.get("exit_status", "success")
        reason = "; ".join([doc.get("reason") or "", *self._problems]).strip("; ")
        self.close("fail" if self._problems else status, reason)

    def close(self, exit_status: ExitStatus, reason: str) -> None:
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

    def _tell_of_other_streams(self) -> None:
        if not self._passed_over:
            return
        named = ", ".join(self._settings.streams)
        if not self._by_name:
            logger.warning(
                "Run %.8s is not denoised: it has frames in %s, and setting `streams` names %s",
                *(self.uid, ", ".join(self._passed_over), named),
            )
            return
        denoised = {key for stream in self._by_name.values() for key in stream.raw_keys.values()}
        others = {stream: keys for stream, keys in self._passed_over.items() if keys}
        if others:
            nowhere = set().union(*others.values()) - denoised
            told = [f"{', '.join(sorted(keys))} in {stream}" for stream, keys in others.items()]
            logger.log(
                # Dark frames, say, of a detector that is denoised are left out on purpose.
                logging.WARNING if nowhere else logging.INFO,
                "Run %.8s: not denoised are frames of %s; setting `streams` names %s. Name there "
                "all streams that are to be denoised.",
                *(self.uid, "; ".join(told), named),
            )

    def _tell_of_left_out(self, doc: Mapping[str, Any], level: int) -> None:
        for key, why in left_out(doc).items():
            if key not in self._left_out:
                self._left_out.add(key)
                logger.log(level, "Run %.8s, stream %s: %s", self.uid, doc["name"], why)

    def _tell_of_not_found(self, doc: Mapping[str, Any], stream: RawStream) -> None:
        """Tell of names in `data_keys` that a stream has nothing for: they may be misspelt."""
        lacking = not_found(doc, self._settings.data_keys or ())
        lacking = [name for name in lacking if name not in self._not_found]
        if not lacking:
            return
        self._not_found.update(lacking)
        images = [key for key, spec in doc["data_keys"].items() if is_frame_key(spec)]
        others = [key for key in images if key not in stream.raw_keys.values()]
        near = [m for name in lacking for m in difflib.get_close_matches(name, others, 1)]
        # Where all images are denoised, this run is merely without one of the detectors.
        logger.log(
            logging.WARNING if others else logging.INFO,
            "Run %.8s, stream %s: there are no frames of %s, which `data_keys` names; the images "
            "are %s%s%s.",
            *(self.uid, doc["name"], ", ".join(lacking), ", ".join(images)),
            f"; not denoised: {', '.join(others)}" if others else "",
            f"; perhaps {near[0]} is meant" if near else "",
        )

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        known = self._by_name.get(doc["name"])
        names = known.names if known else ()
        stream = open_stream(doc, self._settings, self._motors, self._problem, names)
        wanted = doc["name"] in self._settings.streams
        if wanted and self._settings.data_keys is None:
            self._tell_of_left_out(doc, logging.WARNING if stream is None else logging.INFO)
        if stream is None:
            images = {key for key, spec in doc["data_keys"].items() if is_frame_key(spec)}
            if not wanted and images:
                asked_for = frame_keys(doc, self._settings.data_keys).values()
                self._passed_over.setdefault(doc["name"], set()).update(images & {*asked_for})
            return
        self._tell_of_not_found(doc, stream)
        # A second descriptor of the same stream carries a new configuration on.
        if known:
            self.flush()  # what waits was taken with the old configuration
            stream.take = known.take
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
        self._begin(stream, doc["seq_num"], doc["seq_num"])
        row = self._row(stream, doc["seq_num"])
        if row is None:
            return
        row.event = doc
        for name, key in stream.raw_keys.items():
            if key in doc["data"]:
                row.waiting[name] = partial(doc["data"].get, key)

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
        if placed := self._datum_files.place(doc, resource["data_key"]):
            spans = dict([placed])
        else:
            indices = range(doc["indices"]["start"], doc["indices"]["stop"])
            first = doc["seq_nums"]["start"]
            spans = {first + i: range(index, index + 1) for i, index in enumerate(indices)}
        if not spans:
            return
        self._begin(stream, min(spans), max(spans), name)
        for seq_num, span in spans.items():
            row = self._row(stream, seq_num)
            if row is not None:
                row.waiting[name] = partial(self._read, resource, stream, span)

    def _begin(self, stream: RawStream, first: int, last: int, name: str = "") -> None:
        """Note how far a stream has come, with events or with the frames of a name.

        Where it goes back, points are taken again, after a pause: what came before is emitted
        now, so that both are denoised, in the order of the raw stream.
        """
        if first <= stream.take.begun.get(name, 0):
            self._go_back(stream)
        stream.take.begun[name] = last

    def go_back(self, descriptor: str) -> None:
        """Begin with another take of a stream, as after a pause."""
        if descriptor in self._streams:
            self._go_back(self._by_name[self._streams[descriptor].descriptor["name"]])

    def _go_back(self, stream: RawStream) -> None:
        self._flush(stream, final=True)
        stream.take.restart()

    def _row(self, stream: RawStream, seq_num: int) -> Row | None:
        """Return the row of what comes; None if that was emitted without it."""
        if seq_num <= stream.take.emitted:
            logger.debug("Run %.8s, event %d: came too late", self.uid, seq_num)
            return None
        row = stream.row(seq_num, self._skipping)
        if self._known is not None:
            row.result = self._known
            row.done.update(stream.names)
        return row

    def _read(self, resource: Mapping[str, Any], stream: RawStream, span: range) -> np.ndarray:
        """Read the frames of one event, (n, H, W) or (H, W)."""
        read = [self._read_index(resource, stream, index) for index in span]
        if len(read) == 1:
            return read[0]
        return np.concatenate([as_stack(frames, resource["data_key"]) for frames in read])

    def _read_index(self, resource: Mapping[str, Any], stream: RawStream, index: int) -> np.ndarray:
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
            self._flush(stream, final)

    def _flush(self, stream: RawStream, final: bool) -> None:
        try:
            while self._denoiser.denoise(stream, final):
                self._emit_rows(stream, final)
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
            lacks = stream.lacks(row)
            if row.result is None or any(name in row.waiting for name in lacks):
                break  # its turn in `RowDenoiser` has not come
            if not final:
                # Fly scans with stream datums send no events: the next row tells that none comes.
                if not row.event and (lacks or stream.expects_events or seq_num == last):
                    break
                if any(self._may_come(stream, row, seq_num, name) for name in lacks):
                    break
            del stream.rows[seq_num]
            stream.take.emitted = seq_num
            if row.event or row.done:
                ready.append(self._complete(stream, row, row.result))
        for first in range(0, len(ready), self._settings.batch_size):
            self._derived.add(
                stream.named, stream.regions, ready[first : first + self._settings.batch_size]
            )

    def _may_come(self, stream: RawStream, row: Row, seq_num: int, name: str) -> bool:
        """Tell whether frames that a row lacks are still to be waited for."""
        if self._datum_files.awaits(seq_num):
            return True  # the normalizer keeps a datum that came after its event until the stop
        later = [other for number, other in stream.rows.items() if number > seq_num]
        if any(name in other.waiting or name in other.done for other in later):
            return False
        return time.monotonic() - row.arrived < _PATIENCE * self._settings.read_timeout_s

    def _complete(self, stream: RawStream, row: Row, result: DerivedEvent) -> DerivedEvent:
        if row.event:
            result.time = row.event["time"]
            result.data, result.timestamps = row.event["data"], row.event["timestamps"]
        if row.skipped:
            result.problems.append(row.skipped)
            self._skipped += 1
        if missing := stream.lacks(row):
            result.problems.append(f"no frames came for {', '.join(missing)}")
        result.latency_s = time.monotonic() - row.arrived
        return result

    def _problem(self, reason: str) -> None:
        logger.error("Run %.8s goes on undenoised: %s", self.uid, reason)
        self._problems.append(reason)
