"""One raw run on its way through the denoiser."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import RunNormalizer

from .derived import DerivedEvent, DerivedRun
from .errors import DenoiseError, FrameNotReady, MaskError
from .exposure import Exposure, find_exposure
from .frames import Frame
from .results import audit, measure
from .roi import ROI
from .settings import DenoiseSettings
from .sources import FrameSource, as_stack, check_frame_shape, is_frame_key, open_source, read_until

if TYPE_CHECKING:
    from .router import DenoiserLike

__all__ = ["DenoisedRun"]

logger = logging.getLogger(__name__)


@dataclass
class _Row:
    """A raw event on its way: what has come of it, and what still lacks."""

    arrived: float
    event: Mapping[str, Any] | None = None
    waiting: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """By data key, how to get the frames."""
    done: set[str] = field(default_factory=set)
    skipped: str = ""
    """Why it is not to be denoised."""
    result: DerivedEvent | None = None


@dataclass
class _Stream:
    """A raw stream that is denoised."""

    descriptor: Mapping[str, Any]
    regions: dict[str, Mapping[str, ROI]]
    """By data key, the regions of its frames by name."""
    exposures: dict[str, Exposure]
    rows: dict[int, _Row] = field(default_factory=dict)
    """Rows not emitted yet, by seq_num."""

    @property
    def keys(self) -> list[str]:
        return list(self.regions)


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
        self._settings, self._denoiser = settings, denoiser
        self._derived = DerivedRun(
            start, provenance, emit, settings.frames_directory, settings.save_sigma
        )
        self._streams: dict[str, _Stream] = {}  # by uid of the descriptor
        self._by_name: dict[str, _Stream] = {}
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._sources: dict[str, FrameSource] = {}
        self._unreadable: set[str] = set()  # stream resources that have missed a deadline
        self._datums: dict[str, tuple[str, int]] = {}  # datum id -> data key, seq_num
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
        for source in self._sources.values():
            source.close()
        self._sources.clear()
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
        if doc["name"] not in self._settings.streams:
            return
        wanted = self._settings.data_keys
        if wanted is None:
            keys = [key for key, spec in doc["data_keys"].items() if is_frame_key(spec)]
        else:
            keys = [key for key in wanted if key in doc["data_keys"]]
            if not keys:
                frames = [key for key, spec in doc["data_keys"].items() if is_frame_key(spec, 2)]
                logger.warning(
                    "Run %.8s, stream %s has none of the data keys %s, which the settings name; "
                    "it has %s%s",
                    *(self.uid, doc["name"], ", ".join(wanted), ", ".join(doc["data_keys"])),
                    f". Frames are in {', '.join(frames)}" if frames else "",
                )
        exposures = {}
        regions = self._settings.rois_of(keys)
        for key in keys:
            try:
                check_frame_shape(doc["data_keys"][key], key)
                exposures[key] = find_exposure(
                    doc,
                    key,
                    extra_keys=self._settings.exposure_keys,
                    default_s=self._settings.exposure_of(key),
                )
                self._check_shape(key, doc["data_keys"][key]["shape"], regions[key])
            except DenoiseError as error:
                self._problem(str(error))
                exposures.pop(key, None)
        if exposures:
            # A second descriptor of the same stream carries a new configuration on.
            stream = _Stream(doc, {key: regions[key] for key in exposures}, exposures)
            if known := self._by_name.get(doc["name"]):
                self.flush()  # what waits was taken with the old configuration
                stream.rows = known.rows
            self._streams[doc["uid"]] = self._by_name[doc["name"]] = stream

    def _check_shape(self, key: str, shape: Sequence[int], rois: Mapping[str, ROI]) -> None:
        """Find out before the first frame that the mask or a region does not fit."""
        mask, declared = self._settings.mask_of(key), tuple(shape[-2:])
        if len(declared) < 2 or None in declared or 0 in declared:
            return
        if mask is not None and mask.shape != declared:
            raise MaskError(
                f"The mask of {key!r} has shape {mask.shape}, its frames {declared}; "
                "they must agree. Set `mask` to one of the right shape."
            )
        for roi in rois.values():
            roi.check(declared)

    def _event(self, doc: Mapping[str, Any]) -> None:
        stream = self._streams.get(doc["descriptor"])
        if stream is None:
            return
        row = self._row(stream, doc["seq_num"])
        row.event = doc
        for key in stream.keys:
            if key in doc["data"]:
                row.waiting[key] = lambda value=doc["data"][key]: value

    def _stream_resource(self, doc: Mapping[str, Any]) -> None:
        self._resources[doc["uid"]] = doc

    def _stream_datum(self, doc: Mapping[str, Any]) -> None:
        stream = self._streams.get(doc["descriptor"])
        resource = self._resources.get(doc["stream_resource"])
        if stream is None or resource is None:
            return
        key = resource["data_key"]
        if key not in stream.keys:
            return
        indices, seq_nums = doc["indices"], doc["seq_nums"]
        first = self._datums.pop(doc["uid"], (key, seq_nums["start"]))[1]
        for offset in range(indices["stop"] - indices["start"]):
            index = indices["start"] + offset
            row = self._row(stream, first + offset)
            row.waiting[key] = lambda index=index: self._read(resource, stream, index)

    def _remember_datums(self, doc: Mapping[str, Any]) -> None:
        """Keep which event a datum belongs to: the normalizer numbers them by itself."""
        stream = self._streams.get(doc["descriptor"])
        for key in stream.keys if stream else ():
            if isinstance(doc["data"].get(key), str):
                self._datums[doc["data"][key]] = (key, doc["seq_num"])

    def _row(self, stream: _Stream, seq_num: int) -> _Row:
        row = stream.rows.setdefault(seq_num, _Row(time.monotonic()))
        row.skipped = row.skipped or self._skipping
        if self._known is not None:
            row.result = self._known
            row.done.update(stream.keys)
        return row

    def _read(self, resource: Mapping[str, Any], stream: _Stream, index: int) -> np.ndarray:
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

    # Frames ---------------------------------------------------------------------------

    def flush(self, *, final: bool = False) -> None:
        """Denoise the frames that wait, and emit the events that they complete.

        Parameters
        ----------
        final :
            The run is over: what has not come will not come.
        """
        for stream in self._by_name.values():
            try:
                self._denoise(stream, final)
                self._emit_rows(stream, final)
            except Exception as error:
                logger.exception("Run %.8s: denoising failed", self.uid)
                self._problem(f"{type(error).__name__}: {error}")
                stream.rows.clear()

    def _denoise(self, stream: _Stream, final: bool) -> None:
        unfinished = [r for r in stream.rows.values() if not r.done.issuperset(stream.keys)]
        alone = len(unfinished) == 1
        batches: dict[tuple[Any, ...], list[tuple[_Row, Frame]]] = {}  # by key and shape
        for seq_num, row in stream.rows.items():
            if row.result is None:
                row.result = DerivedEvent(seq_num, time.time(), {}, {})
            if row.skipped:
                row.done.update(stream.keys)
                row.waiting.clear()
                continue
            for key in [key for key in row.waiting if key not in row.done]:
                if stream.exposures[key].value_s is None and row.event is None and not final:
                    continue  # the event that is to come tells the exposure
                frame = self._frame(stream, row, key, seq_num)
                row.done.add(key)
                del row.waiting[key]
                if frame is None:
                    continue
                batch = batches.setdefault((key, *frame.counts.shape[1:]), [])
                batch.append((row, frame))
                if sum(len(frame.counts) for _, frame in batch) >= self._settings.batch_size:
                    self._denoise_batch(stream, batch, alone)
        for batch in batches.values():
            self._denoise_batch(stream, batch, alone)

    def _frame(self, stream: _Stream, row: _Row, key: str, seq_num: int) -> Frame | None:
        """Fetch the frames of one row; note the reason where they cannot be had."""
        try:
            data = row.event["data"] if row.event else {}
            exposure_s = stream.exposures[key].of_event(data)
            counts = as_stack(row.waiting[key](), key)
        except Exception as error:
            self._note(row, seq_num, key, error)
            return None
        mask = self._settings.mask_of(key)
        if mask is not None and mask.shape != counts.shape[1:]:
            message = f"{key!r} has frames {counts.shape[1:]}, its mask {mask.shape}"
            self._note(row, seq_num, key, MaskError(message))
            return None
        return Frame(counts, exposure_s, mask, key, seq_num, self.uid)

    def _denoise_batch(self, stream: _Stream, batch: list[tuple[_Row, Frame]], alone: bool) -> None:
        """Denoise frames of one key and shape; one by one if they fail together."""
        if not batch:
            return
        items, batch[:] = list(batch), []
        frames = [frame for _, frame in items]
        counts = np.concatenate([frame.counts for frame in frames])  # -> (B, H, W)
        exposures = np.concatenate([np.full(len(f.counts), f.exposure_s) for f in frames])
        try:
            denoised = self._denoiser.denoise(counts, exposures, frames[0].mask)
        except Exception as error:
            if len(items) == 1:
                row, frame = items[0]
                self._note(row, frame.seq_num, frame.data_key, error)
                return
            for item in items:
                self._denoise_batch(stream, [item], alone)
            return
        first = 0
        for row, frame in items:
            span = slice(first, first + len(frame.counts))
            first = span.stop
            rate = row.result.rates[frame.data_key] = denoised.rate[span]
            if self._settings.save_sigma and denoised.sigma is not None:
                row.result.sigmas[frame.data_key] = denoised.sigma[span]
            try:
                self._look_at(row, frame, rate, stream.regions[frame.data_key], alone)
            except Exception as error:
                self._note(row, frame.seq_num, frame.data_key, error)
            logger.debug("Run %.8s, event %d: denoised", self.uid, frame.seq_num)

    def _look_at(
        self, row: _Row, frame: Frame, rate: np.ndarray, rois: Mapping[str, ROI], alone: bool
    ) -> None:
        """Measure the frames of one row, and audit them if nothing else waits."""
        row.result.numbers |= measure(frame, rate, rois, self._denoiser)
        # A denoiser without a card, such as a test's, claims nothing that could be audited.
        if self._settings.audit and alone and self._denoiser.card:
            numbers, reason = audit(frame, self._denoiser)
            row.result.numbers |= numbers
            row.result.audits[frame.data_key] = not reason
            if reason:
                row.result.problems.append(f"audit of {frame.data_key}: {reason}")

    def _emit_rows(self, stream: _Stream, final: bool) -> None:
        """Emit the rows that are complete, in order."""
        ready: list[DerivedEvent] = []
        last = max(stream.rows, default=0)
        for seq_num in sorted(stream.rows):
            row = stream.rows[seq_num]
            complete = row.done.issuperset(stream.keys)
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
                stream.descriptor, stream.regions, ready[first : first + self._settings.batch_size]
            )

    def _complete(self, stream: _Stream, row: _Row, final: bool) -> DerivedEvent:
        result = row.result
        if row.event:
            result.time = row.event["time"]
            result.data, result.timestamps = row.event["data"], row.event["timestamps"]
        if row.skipped:
            result.problems.append(row.skipped)
            self._skipped += 1
        missing = [key for key in stream.keys if key not in row.done]
        if missing and final:
            result.problems.append(f"no frames came for {', '.join(missing)}")
        result.latency_s = time.monotonic() - row.arrived
        return result

    def _note(self, row: _Row, seq_num: int, key: str, error: Exception) -> None:
        known = isinstance(error, DenoiseError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        row.result.problems.append(f"{key}: {reason}")
        logger.warning("Run %.8s, event %d, %s: not denoised: %s", self.uid, seq_num, key, reason)

    def _problem(self, reason: str) -> None:
        logger.error("Run %.8s goes on undenoised: %s", self.uid, reason)
        self._problems.append(reason)
