"""The newest result of each raw stream, from the documents of derived runs."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bluesky_denoise.runs.derived_run import raw_stream_of
from bluesky_denoise.runs.last_event import RawEvent
from bluesky_denoise.sources.frame_keys import is_part

__all__ = ["NewestResults", "Result"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What came of one raw event."""

    seq_num: int
    """That of the raw event."""
    time: float
    """That of the raw event, seconds since the epoch."""
    data: Mapping[str, Any]
    """The derived event."""

    def answers(self, wanted: RawEvent) -> bool:
        """Tell whether it is of this raw event, or of a later one."""
        # After a pause points are taken again, with the numbers that they had: their time tells
        # them from the first, and from those that came after the first.
        return self.seq_num >= wanted.seq_num and self.time >= wanted.time


class NewestResults:
    """Follow derived runs, and know the newest result of each of their streams.

    Parameters
    ----------
    name :
        Name of the device, for messages.
    streams :
        The raw streams to follow.
    keys :
        The numbers that the derived events must have.
    frames_of :
        By number, the data key that it is of: a run may lack some of these, not all of them.
    """

    def __init__(
        self,
        name: str,
        streams: tuple[str, ...],
        keys: tuple[str, ...],
        frames_of: Mapping[str, str],
    ) -> None:
        self._name, self._streams, self._keys = name, streams, keys
        self._frames_of = frames_of
        self.results: dict[tuple[str, str], Result] = {}
        """By raw run and raw stream."""
        self.missing: dict[tuple[str, str], str] = {}
        """Why the results of a raw stream are of no use."""
        self.ended: dict[str, str] = {}
        """By raw run, why its derived run ended; that of the last one."""
        self._runs: dict[str, str] = {}  # derived run -> raw run
        self._streams_of: dict[str, tuple[str, str]] = {}  # derived descriptor -> raw stream

    def note(self, name: str, doc: Mapping[str, Any]) -> Result | None:
        """Take a document of a derived run; return the result that it is."""
        if name == "start" and "original_run_uid" in doc:
            self._runs[doc["uid"]] = doc["original_run_uid"]
        elif name == "descriptor":
            self._descriptor(doc)
        elif name == "event" and (run := self._streams_of.get(doc["descriptor"])):
            result = Result(doc["data"]["raw_seq_num"], doc["time"], doc["data"])
            self.results[run] = result
            return result
        elif name == "stop":
            self._stop(doc)
        return None

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        raw_run = self._runs.get(doc["run_start"])
        stream = raw_stream_of(doc["name"])
        if raw_run is None or stream not in self._streams or "raw_seq_num" not in doc["data_keys"]:
            return
        run = self._streams_of[doc["uid"]] = raw_run, stream
        if why := self._why_useless(raw_run, doc["data_keys"]):
            self.missing[run] = why
            # Whoever triggers it in this run is told; others need not care.
            logger.info("%s", self.missing[run])

    def _why_useless(self, raw_run: str, there: Collection[str]) -> str:
        """Say which numbers a stream should have, seen from the frames that it has."""
        frames = {key.removesuffix("_raw_total") for key in there if key.endswith("_raw_total")}
        wanted = set(self._frames_of.values())
        # What stands for a device with several images comes under the names of these.
        others = frames - wanted
        absent = {
            data_key
            for data_key in wanted - frames
            if not any(is_part(frame, data_key) for frame in others)
        }
        has_none = absent == wanted
        missing = [
            key
            for key in self._keys
            if key not in there and (has_none or self._frames_of.get(key) not in absent)
        ]
        if not missing:
            return ""
        if wanted and has_none:
            return (
                f"{self._name} has the numbers of {', '.join(sorted(wanted))}; the frames that are "
                f"denoised of run {raw_run:.8} are {', '.join(sorted(frames))}. Name these in "
                "`data_keys` or `rois`."
            )
        return (
            f"{self._name} is to show {', '.join(missing)}, which the denoised stream of run "
            f"{raw_run:.8} does not have; it has {', '.join(there)}. Build it with `data_keys` and "
            "`rois` that the denoiser has, and its `settings`, which tell of which frames they are."
        )

    def _stop(self, doc: Mapping[str, Any]) -> None:
        raw_run = self._runs.pop(doc["run_start"], None)
        if raw_run is None:
            return
        self.ended.clear()  # of the runs that have ended, the last will do
        self.ended[raw_run] = doc.get("reason") or doc["exit_status"]
        self._streams_of = {k: run for k, run in self._streams_of.items() if run[0] != raw_run}
        # A plan that is still in the run can ask for what has come.
        known = {*self._runs.values(), raw_run}
        self.results = {run: result for run, result in self.results.items() if run[0] in known}
        self.missing = {run: why for run, why in self.missing.items() if run[0] in known}
