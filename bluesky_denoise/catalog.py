"""The denoised streams of a run, and whether all of it is denoised."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiled.client import from_context
from tiled.client.utils import ClientError
from tiled.queries import Eq

from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.streams import denoised_in
from bluesky_denoise.runs.derived_run import raw_stream_of
from bluesky_denoise.sources.frame_keys import frame_keys

__all__ = [
    "FROM_ARCHIVE",
    "NO_END",
    "DenoisedStream",
    "as_tiled_run",
    "denoised_streams",
    "derived_runs",
    "ended_well",
    "events_of",
    "find_stream",
    "frames_not_ok",
    "has_frame_keys",
    "has_frames",
    "is_complete",
    "is_whole",
    "is_whole_so_far",
    "streams_of",
]

FROM_ARCHIVE = "from_archive"
"""Key of the provenance: true where no frame was lost on the way, as beside a scan."""
NO_END = "the raw run has no end in Tiled"
"""Begins the reason of a stream that has what there was of such a run."""
_MAY_PASS = r"could not be saved in|\w+Error: "
"""In reasons of frames that may be denoised another time."""


@dataclass(frozen=True)
class DenoisedStream:
    """One denoised stream of a run, and what made it."""

    name: str
    """Its key in the run that holds it."""
    stream: Any = field(repr=False)
    """Tiled client of the stream: ``stream["pilatus_image"].read()``, ``stream.read()``."""
    time: float
    """When denoising began, seconds since the epoch."""
    model: str
    """Name of the network's weights."""
    weights_sha256: str
    """What the weights were, exactly."""
    version: str
    """Version of this package."""
    exit_status: str | None
    """``"success"``, ``"abort"`` or ``"fail"``; None while it is being written."""
    reason: str
    """Why it failed; empty otherwise."""
    num_events: int | None
    """Events in the stream; None while it is being written."""
    run_uid: str
    """The uid of the derived run."""
    provenance: dict[str, Any] = field(repr=False)
    """All that was recorded, with the settings."""

    @property
    def raw_stream(self) -> str:
        """Name of the raw stream: ``primary`` of ``denoised_2``, ``dark`` of ``denoised_dark``."""
        recorded = self.provenance.get("raw_stream")
        if recorded:
            return str(recorded)
        # Written before it was recorded: a raw stream ``dark_1`` would be taken for ``dark``.
        return re.sub(r"_\d+$", "", self.name).removeprefix("denoised").lstrip("_") or "primary"


def denoised_streams(run: Any, container: str = "denoised") -> list[DenoisedStream]:
    """Return the denoised streams of a raw run, newest first.

    Parameters
    ----------
    run :
        A run from a Tiled catalog, or from a databroker one (``Broker``'s header too).
    container :
        Path of the container where derived runs are, for those that were written with
        ``tiled_layout="run"``.

    Returns
    -------
    list of DenoisedStream

    Examples
    --------
    >>> newest = denoised_streams(cat[-1])[0]
    >>> newest.stream["pilatus_image"].read()
    """
    run = as_tiled_run(run)
    return streams_of(run, derived_runs(run.context, container))


def streams_of(run: Any, derived: Any) -> list[DenoisedStream]:
    """Return the denoised streams of one of many raw runs, newest first.

    Parameters
    ----------
    run :
        From `as_tiled_run`.
    derived :
        From `derived_runs`, which needs to be asked only once for all runs.
    """
    found = [_describe(*item) for item in denoised_in(run)]
    wanted = Eq("start.original_run_uid", run.metadata["start"]["uid"])
    of_run = () if derived is None else derived.search(wanted).values()
    for derived_run in of_run:  # a list would ask for their number first
        start, stop = derived_run.metadata["start"], derived_run.metadata.get("stop") or {}
        for name, stream in derived_run.items():
            provenance = {
                **start["denoise"],
                "run_uid": start["uid"],
                "time": start["time"],
                **{key: stop[key] for key in ("exit_status", "reason") if key in stop},
                "num_events": stop.get("num_events", {}).get(name),
                "raw_stream": raw_stream_of(name),
            }
            found.append(_describe(name, stream, provenance))
    return sorted(found, key=lambda item: item.time, reverse=True)


def find_stream(run: Any, name: str | None = None, container: str = "denoised") -> DenoisedStream:
    """Return one of the denoised streams of a raw run.

    Parameters
    ----------
    run, container :
        As for `denoised_streams`.
    name :
        Its name, of which the newest is taken, or the uid of its derived run, or the first
        letters of that. None: the newest that was not cut short, if there is one.

    Raises
    ------
    DenoiseError
        If there is none.
    """
    streams, uid = denoised_streams(run, container), as_tiled_run(run).metadata["start"]["uid"]
    if not streams:
        raise DenoiseError(
            f"Run {uid} has no denoised stream; make one with `bluesky-denoise reprocess`."
        )
    if name is None:
        return next((s for s in streams if s.exit_status not in (None, "fail")), streams[0])
    # Derived runs of their own all call it `denoised`: their uids tell them apart.
    found = [s for s in streams if s.name == name or (name and s.run_uid.startswith(name))]
    if not found:
        raise DenoiseError(
            f"Run {uid} has no {name!r}; it has "
            f"{', '.join(f'{s.name} ({s.run_uid[:8]})' for s in streams)}."
        )
    return found[0]


def _describe(name: str, stream: Any, provenance: dict[str, Any]) -> DenoisedStream:
    return DenoisedStream(
        name=name,
        stream=stream,
        time=provenance["time"],
        model=provenance.get("model", ""),
        weights_sha256=provenance.get("weights_sha256", ""),
        version=provenance.get("version", ""),
        exit_status=provenance.get("exit_status"),
        reason=provenance.get("reason") or "",
        num_events=provenance.get("num_events"),
        run_uid=provenance["run_uid"],
        provenance=provenance,
    )


def as_tiled_run(run: Any) -> Any:
    """Return a version 3 Tiled client of a run, whatever client or header came."""
    run = getattr(run, "_run", run) if not hasattr(run, "metadata") else run
    run = getattr(run, "v3", run)
    if not hasattr(run, "metadata") or "start" not in run.metadata:
        raise DenoiseError(
            f"{type(run).__name__} is no run; expected one from a Tiled or databroker catalog, "
            "such as cat[-1]."
        )
    run = run.new_variation()  # a client remembers the streams that it has seen,
    return run if run.metadata.get("stop") else run.refresh()  # and that there was no end


def derived_runs(context: Any, container: str = "denoised") -> Any:
    """Open the container where derived runs are; None if none has been written.

    Parameters
    ----------
    context :
        Of any Tiled client of the catalog.
    container :
        As for `denoised_streams`.
    """
    try:
        return from_context(context, node_path_parts=container.strip("/").split("/"))
    except (KeyError, ClientError):
        return None


def has_frame_keys(
    run: Any, streams: Sequence[str], data_keys: Sequence[str] | None = None
) -> bool:
    """Tell whether a run has frames that are to be denoised.

    Parameters
    ----------
    run :
        The raw run.
    streams :
        The raw streams that are to be denoised.
    data_keys :
        Data keys or detectors that are; None: every two-dimensional detector key.
    """
    raw = as_tiled_run(run)
    for name in streams:
        stream = raw.get(name)
        specs = stream.base.metadata.get("data_keys", {}) if stream is not None else {}
        object_keys: dict[str, list[str]] = {}
        for key, spec in specs.items():
            object_keys.setdefault(spec.get("object_name", ""), []).append(key)
        if frame_keys({"data_keys": specs, "object_keys": object_keys}, data_keys):
            return True
    return False


def is_complete(
    run: Any,
    streams: tuple[str, ...] = ("primary",),
    container: str = "denoised",
    data_keys: Sequence[str] | None = None,
) -> bool:
    """Tell whether a run needs no (more) denoising.

    It needs none if it holds no such frames, is not finished, or has a denoised stream with
    an event for each raw one that is in Tiled, none of which was skipped or lost beside the scan.
    There are more events than the run says where points were taken again after a pause.

    Parameters
    ----------
    run :
        The raw run.
    streams, data_keys :
        As for `has_frame_keys`.
    container :
        As for `denoised_streams`.
    """
    raw = as_tiled_run(run)
    stop = raw.metadata.get("stop")
    if stop is None:
        return True
    for name in streams:
        if not has_frame_keys(raw, [name], data_keys):
            continue
        if stop.get("num_events", {}).get(name) and not any(
            found.raw_stream == name and is_whole(found, stop)
            for found in denoised_streams(raw, container)
        ):
            return False
    return True


def is_whole(denoised: DenoisedStream, raw_stop: Mapping[str, Any]) -> bool:
    """Tell whether a stream has a result for each raw event, or all that could be had of Tiled.

    Events that the raw run says it has may lack there.
    """
    if not ended_well(denoised.exit_status, denoised.reason, raw_stop):
        return False
    wanted = (raw_stop.get("num_events") or {}).get(denoised.raw_stream, 0)
    has_all = denoised.provenance.get(FROM_ARCHIVE) or denoised.num_events >= wanted
    return bool(has_all and _none_is_missing(denoised))


def is_whole_so_far(run: Any, denoised: DenoisedStream) -> bool:
    """Tell whether a stream has all that Tiled has of a raw run without an end.

    The scan goes on, or its session was killed; nobody can tell which.
    """
    done, taken = events_of(run, denoised)
    ended = denoised.exit_status not in (None, "fail") or denoised.reason.startswith(NO_END)
    return ended and done >= taken and _none_is_missing(denoised)


def ended_well(exit_status: str | None, reason: str, raw_stop: Mapping[str, Any]) -> bool:
    """Tell whether denoising came to its end; that of a scan that failed ends as the scan."""
    if exit_status == "fail":
        # Beside a scan its reason comes without what would join it to others.
        of_scan = (raw_stop.get("reason") or "").strip("; ")
        return raw_stop.get("exit_status") == "fail" and reason.strip("; ") == of_scan
    return exit_status is not None


def events_of(run: Any, denoised: DenoisedStream) -> tuple[int, int]:
    """Return how many events a denoised stream has, and how many its raw stream.

    Of streams and runs that have no end, those that are in Tiled so far are counted.
    """
    raw = as_tiled_run(run)
    done, taken = denoised.num_events, None
    if done is None:
        done = StoredStream(denoised.stream).count_events()
    if stop := raw.metadata.get("stop"):
        taken = stop.get("num_events", {}).get(denoised.raw_stream)
    if taken is None:
        stream = raw.get(denoised.raw_stream)
        taken = 0 if stream is None else StoredStream(stream).count_events()
    return done, taken


def frames_not_ok(denoised: DenoisedStream) -> int:
    """Return how many events of a stream could not be denoised, or failed the audit."""
    table = StoredStream(denoised.stream).read_table(["denoise_ok"])
    return 0 if table is None else int((~table["denoise_ok"].astype(bool)).sum())


def _none_is_missing(denoised: DenoisedStream) -> bool:
    """Tell whether all frames of a stream are denoised that can be.

    What an archived run was denoised without cannot be, by these settings, unless the reason is a
    full disk, or an error that is none of the frame.
    """
    events = StoredStream(denoised.stream).read_table()
    if events is None:
        return True
    done = has_frames(events)
    if denoised.provenance.get(FROM_ARCHIVE):
        done |= ~events["denoise_reason"].str.contains(_MAY_PASS)
    return bool(done.all())


def has_frames(events: Any) -> Any:
    """Tell for each event of a denoised stream whether all of its frames are denoised.

    Those that fail the audit are, and would fail it again.

    Parameters
    ----------
    events : pandas.DataFrame
        The table of the stream.

    Returns
    -------
    pandas.Series
        Of bool.
    """
    ok = events["denoise_ok"].astype(bool)
    if "denoise_audit" not in events:
        return ok
    totals = [key for key in events if key.endswith("_denoised_total")]
    failed = (events["denoise_audit"] == "failed") & events[totals].notna().all(axis=1)
    return ok | (failed & ~events["denoise_reason"].str.contains(_MAY_PASS))
