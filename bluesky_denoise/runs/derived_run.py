"""Results in, documents out: the run that is derived from a raw run."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import event_model
from event_model.documents import RunStop

from bluesky_denoise.runs.derived_stream import DerivedEvent, DerivedStream
from bluesky_denoise.runs.results import Regions
from bluesky_denoise.support.run_directories import directory_of_run

__all__ = [
    "DerivedRun",
    "ExitStatus",
    "is_derived",
    "is_stream_name",
    "raw_stream_of",
    "start_metadata",
    "stop_document",
    "stream_name",
]

logger = logging.getLogger(__name__)

ExitStatus = Literal["success", "abort", "fail"]
"""How a run has ended, as its stop document says."""

_NOT_COPIED = frozenset({"uid", "time"})


def stream_name(raw_stream: str) -> str:
    """Return the name of the stream derived from a raw stream."""
    return "denoised" if raw_stream == "primary" else f"denoised_{raw_stream}"


def raw_stream_of(name: str) -> str:
    """Return the raw stream that a stream of a derived run belongs to."""
    return "primary" if name == "denoised" else name.removeprefix("denoised_")


def is_stream_name(name: str) -> bool:
    """Tell whether a name is one of those that streams of derived runs have, here or in Tiled."""
    return name == "denoised" or name.startswith("denoised_")


def is_derived(start: Mapping[str, Any]) -> bool:
    """Tell whether a start document is of a derived run, which is never denoised again."""
    return "original_run_uid" in start and "denoise" in start


def start_metadata(raw_start: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the start document of a derived run carries."""
    copied = {key: value for key, value in raw_start.items() if key not in _NOT_COPIED}
    hints = copied.get("hints") or {}
    # They name the stream to plot, which has another name here. Any others are left alone.
    with contextlib.suppress(TypeError, ValueError, AttributeError, KeyError):
        dimensions = [[fields, stream_name(stream)] for fields, stream in hints["dimensions"]]
        copied["hints"] = {**hints, "dimensions": dimensions}
    return {**copied, "original_run_uid": raw_start["uid"], "denoise": dict(provenance)}


def stop_document(run_start: str, num_events: dict[str, int], reason: str) -> RunStop:
    """Return the stop document for a derived run whose own composer is lost."""
    return {
        "uid": str(uuid.uuid4()),
        "time": time.time(),
        "run_start": run_start,
        "exit_status": "fail",
        "reason": reason,
        "num_events": num_events,
    }


class DerivedRun:
    """Compose the documents of one derived run, and save its frames.

    Nothing is emitted before the first :meth:`add` or :meth:`close`: a raw run without
    frames leaves no trace.

    Parameters
    ----------
    raw_start :
        The start document of the raw run.
    provenance :
        Versions, model, weights, and settings; goes into the start document.
    emit :
        Called with ``(name, doc)`` for each document.
    frames_directory :
        Where frames are saved; None: they travel inside the events.
    save_sigma :
        Save the standard errors of the frames too, under ``<data key>_sigma``.
    """

    def __init__(
        self,
        raw_start: Mapping[str, Any],
        provenance: Mapping[str, Any],
        emit: Callable[[str, Mapping[str, Any]], None],
        frames_directory: Path | None = None,
        save_sigma: bool = False,
    ) -> None:
        self._raw_start, self._provenance = raw_start, provenance
        self._emit, self._directory, self._save_sigma = emit, frames_directory, save_sigma
        self._bundle: event_model.ComposeRunBundle | None = None
        self._streams: dict[str, DerivedStream] = {}

    @property
    def num_events(self) -> dict[str, int]:
        """Events emitted, by stream."""
        return {stream.name: stream.emitted for stream in self._streams.values()}

    def open(self) -> event_model.ComposeRunBundle:
        """Emit the start document, once."""
        if self._bundle is None:
            metadata = start_metadata(self._raw_start, self._provenance)
            self._bundle = event_model.compose_run(metadata=metadata)
            self._emit("start", self._bundle.start_doc)
        return self._bundle

    def add(
        self, descriptor: Mapping[str, Any], regions: Regions, events: list[DerivedEvent]
    ) -> None:
        """Emit the documents for a batch of events of one raw stream.

        Parameters
        ----------
        descriptor :
            The raw descriptor of the stream.
        regions :
            The data keys that are denoised, each with the regions of its frames by name.
        events :
            In the order of their ``seq_num``.
        """
        if not events:
            return
        bundle = self.open()
        name = stream_name(descriptor["name"])
        if name not in self._streams:
            directory = self._directory  # which names keys of the raw run: its `uid`, not ours
            self._streams[name] = DerivedStream(
                name,
                bundle,
                descriptor,
                regions,
                events,
                self._emit,
                partial(directory_of_run, directory, self._raw_start) if directory else None,
                self._save_sigma,
            )
        self._streams[name].add(events)

    def close(self, exit_status: ExitStatus, reason: str = "") -> None:
        """Emit the stop document and close the files.

        Parameters
        ----------
        exit_status :
            How the raw run has ended, or ``"fail"``.
        reason :
            Why it failed.
        """
        for stream in self._streams.values():
            try:
                stream.close()
            except Exception as error:
                logger.exception("The file of %s could not be closed", stream.name)
                why = str(error).partition("\n")[0]
                reason = "; ".join(filter(None, [reason, f"{type(error).__name__}: {why}"]))
                exit_status = "fail"
        self._emit("stop", self.open().compose_stop(exit_status=exit_status, reason=reason))
