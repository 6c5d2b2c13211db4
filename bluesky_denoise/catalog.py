"""The denoised streams of a run, and runs denoised again from the archive."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiled.client import from_context
from tiled.client.utils import ClientError
from tiled.queries import Eq

from .archive import archived_documents
from .errors import DenoiseError, TiledUnavailable
from .router import DenoiserLike, DenoiseRouter
from .settings import DenoiseSettings
from .sources import is_frame_key
from .tiled_sink import TiledSink
from .tiled_streams import METADATA_KEY

__all__ = [
    "DenoisedStream",
    "denoised_streams",
    "frames_not_ok",
    "has_result",
    "is_complete",
    "mark_interrupted",
    "reprocess",
]

# Settings that say how and where a result is made, and do not change it.
_CIRCUMSTANCES = {
    *("streams", "device", "threads", "batch_size", "queue_size", "queue_wait_s"),
    *("read_timeout_s", "node_timeout_s", "tiled_uri", "tiled_api_key", "tiled_layout"),
    *("tiled_container", "frames_directory", "backup_directory"),
}
_INTERRUPTED = "interrupted before its end"


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
    run = _as_tiled_run(run)
    found = []
    for name, stream in run.items():
        provenance = stream.base.metadata.get(METADATA_KEY)
        if provenance:
            found.append(_describe(name, stream, dict(provenance)))
    for derived in _derived_runs(run, container):
        start, stop = derived.metadata["start"], derived.metadata.get("stop") or {}
        for name, stream in derived.items():
            provenance = {
                **start["denoise"],
                "run_uid": start["uid"],
                "time": start["time"],
                **{key: stop[key] for key in ("exit_status", "reason") if key in stop},
                "num_events": stop.get("num_events", {}).get(name),
            }
            found.append(_describe(name, stream, provenance))
    return sorted(found, key=lambda item: item.time, reverse=True)


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


def _as_tiled_run(run: Any) -> Any:
    """Return a version 3 Tiled client of a run, whatever client or header came."""
    run = getattr(run, "_run", run) if not hasattr(run, "metadata") else run
    run = getattr(run, "v3", run)
    if not hasattr(run, "metadata") or "start" not in run.metadata:
        raise DenoiseError(
            f"{type(run).__name__} is no run; expected one from a Tiled or databroker catalog, "
            "such as cat[-1]."
        )
    return run.new_variation()  # a client remembers the streams that it has seen


def _derived_runs(run: Any, container: str) -> list[Any]:
    path = container.strip("/").split("/")
    try:
        catalog = from_context(run.context, node_path_parts=path)
    except (KeyError, ClientError):
        return []  # none has been written
    return list(catalog.search(Eq("start.original_run_uid", run.metadata["start"]["uid"])).values())


def is_complete(run: Any, streams: tuple[str, ...] = ("primary",)) -> bool:
    """Tell whether a run needs no (more) denoising.

    It needs none if it holds no frames, is not finished, or has a denoised stream with
    an event for each raw one, none of which was skipped or lost.
    """
    raw = _as_tiled_run(run)
    stop = raw.metadata.get("stop")
    if stop is None:
        return True
    for name in streams:
        keys = raw[name].base.metadata.get("data_keys", {}) if name in raw else {}
        if not any(is_frame_key(spec) for spec in keys.values()):
            continue
        wanted = stop.get("num_events", {}).get(name, 0)
        if not any(
            found.num_events == wanted and _none_is_missing(found.stream)
            for found in denoised_streams(raw)
            if found.exit_status in ("success", "abort") and found.raw_stream == name
        ):
            return wanted == 0
    return True


def frames_not_ok(denoised: DenoisedStream) -> int:
    """Return how many events of a stream could not be denoised, or failed the audit."""
    node = denoised.stream.base
    if "internal" not in node:
        return 0
    return int((~node["internal"].read(["denoise_ok"])["denoise_ok"].astype(bool)).sum())


def has_result(
    run: Any, provenance: Mapping[str, Any], streams: tuple[str, ...] = ("primary",)
) -> str:
    """Tell whether a run has been denoised with the same weights and settings.

    Parameters
    ----------
    run :
        The raw run.
    provenance :
        `DenoiseRouter.provenance`.
    streams :
        The raw streams that must have it.

    Returns
    -------
    str
        Name of the denoised stream; empty where one is missing, or incomplete.
    """
    raw = _as_tiled_run(run)
    wanted = (raw.metadata.get("stop") or {}).get("num_events", {})
    name = ""
    for stream in [stream for stream in streams if wanted.get(stream)]:
        name = next(
            (
                found.name
                for found in denoised_streams(raw)
                if found.exit_status in ("success", "abort")
                and found.raw_stream == stream
                and found.num_events == wanted[stream]
                and _what_matters(found.provenance) == _what_matters(provenance)
            ),
            "",
        )
        if not name:
            return ""
    return name


def _what_matters(provenance: Mapping[str, Any]) -> str:
    settings = {
        key: value
        for key, value in provenance.get("settings", {}).items()
        if key not in _CIRCUMSTANCES
    }
    what = [provenance.get("version"), provenance.get("weights_sha256"), settings]
    return json.dumps(what, sort_keys=True, default=str)  # as Tiled gives it back


def mark_interrupted(run: Any) -> list[str]:
    """Record that denoised streams which have no end were interrupted.

    A process that is killed leaves a stream without an end, which looks as if it were
    still being written. Call it for runs that nothing is denoising any more; where
    something is, its own end is recorded over this.

    Returns
    -------
    list of str
        Names of the streams.
    """
    raw = _as_tiled_run(run)
    if raw.metadata.get("stop") is None:
        return []
    marked = []
    for name, stream in raw.items():
        provenance = stream.base.metadata.get(METADATA_KEY)
        if provenance and provenance.get("exit_status") is None:
            ended = {**provenance, "exit_status": "fail", "reason": _INTERRUPTED}
            stream.base.update_metadata({METADATA_KEY: ended}, drop_revision=True)
            marked.append(name)
    return marked


def _none_is_missing(stream: Any) -> bool:
    """Tell whether all frames are denoised; those that fail the audit would fail again."""
    events = stream.base["internal"].read()
    audited = events["denoise_audit"] == "failed" if "denoise_audit" in events else False
    return bool((events["denoise_ok"] | audited).all())


def reprocess(
    run: Any,
    settings: DenoiseSettings,
    *,
    denoiser: DenoiserLike | None = None,
    progress: Callable[[int], None] = lambda events: None,
) -> str:
    """Denoise an archived run again; the result goes beside the earlier ones.

    Parameters
    ----------
    run :
        A run of a Tiled catalog.
    settings :
        What to denoise, with which model, and where to write it.
    denoiser :
        None: the model that the settings name is loaded.
    progress :
        Called with the number of events done.

    Returns
    -------
    str
        The uid of the derived run.

    Raises
    ------
    DenoiseError
        If the run holds nothing to denoise, or it failed.
    TiledUnavailable
        If it could not be written; the documents are kept in the backup directory.
    """
    router = DenoiseRouter(settings, denoiser)
    derived: dict[str, dict[str, Any]] = {}
    router.subscribe(lambda name, doc: derived.setdefault(name, doc), "start")
    router.subscribe(lambda name, doc: derived.update(stop=doc), "stop")
    sink = None
    if settings.tiled_uri:
        sink = TiledSink(settings)
        router.subscribe(sink)
    done, reason = 0, _INTERRUPTED
    try:
        for name, doc in archived_documents(run, settings.streams):
            router(name, doc)
            if name == "event":
                done += 1
                progress(done)
        reason = "the archived run has no stop document"
    finally:
        router.close(reason)
        left = sink.close() if sink else []
    if left:
        raise TiledUnavailable(f"The result could not be written to Tiled; it is in {left[0]}.")
    uid = run.metadata["start"]["uid"]
    if "start" not in derived:
        raise DenoiseError(
            f"Run {uid} holds no frames in {', '.join(settings.streams)}: nothing was denoised."
        )
    if derived["stop"]["exit_status"] == "fail" and derived["stop"].get("reason"):
        raise DenoiseError(f"Run {uid}: {derived['stop']['reason']}")
    return derived["start"]["uid"]
