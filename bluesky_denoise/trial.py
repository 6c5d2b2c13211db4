"""Settings tried on an archived run: what they make of its first frames, and how fast."""

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.catalog import as_tiled_run
from bluesky_denoise.documents import Document
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.frames import DenoiserLike
from bluesky_denoise.in_tiled.archive import archived_documents
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.derived_run import raw_stream_of
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.sources.exposure import Exposure, find_exposure
from bluesky_denoise.sources.frame_keys import also_called, frame_keys

__all__ = ["TriedFrames", "TriedStream", "try_settings"]


@dataclass(frozen=True)
class TriedFrames:
    """What settings make of the frames of one data key."""

    name: str
    """That the denoised frames have."""
    shape: tuple[int, ...]
    """(H, W)"""
    exposure: Exposure
    """Where it was found."""
    exposure_s: float
    """Of the first frame, seconds."""
    counts: float
    """Mean over the valid pixels of all frames that were tried, counts."""
    masked: float
    """Share of the pixels that no frame has a value for, 0 to 1."""


@dataclass(frozen=True)
class TriedStream:
    """What settings make of the first events of a raw stream."""

    name: str
    """Of the raw stream."""
    frames: list[TriedFrames]
    events: list[Mapping[str, Any]]
    """Data of the denoised events, without the frames."""
    seconds: float
    """To denoise the frames of one event and to measure regions in them, median."""
    audit_seconds: float
    """What the audit takes on top of that, median; 0 without."""
    pace_s: float | None
    """From event to event of the raw run, mean; None where it has no end."""

    @property
    def not_ok(self) -> list[tuple[int, str]]:
        """Number of each raw event whose frames are not ok, and the reason."""
        return [
            (int(event["raw_seq_num"]), event["denoise_reason"])
            for event in self.events
            if not event["denoise_ok"]
        ]


def try_settings(
    run: Any, settings: SettingsLike, events: int = 3, *, denoiser: DenoiserLike | None = None
) -> list[TriedStream]:
    """Denoise the first frames of an archived run as if beside a scan, and write nothing.

    Parameters
    ----------
    run :
        A run of a Tiled catalog.
    settings :
        What to try; or a YAML file of it. Where they say that results go, nothing is written.
    events :
        How many of each stream, from its start.
    denoiser :
        None: the model that the settings name is loaded.

    Returns
    -------
    list of TriedStream
        Those of the settings' streams that have frames.

    Raises
    ------
    SettingsError, ModelNotFound, CheckpointError
        If the settings cannot work with any run.
    DenoiseError
        If nothing of this run can be denoised with them, with the reason.
    """
    settings = as_settings(settings)
    dry = settings.model_copy(update={"frames_directory": None, "save_sigma": False})
    router = DenoiseRouter(dry, denoiser)
    raw = as_tiled_run(run)
    documents = list(archived_documents(raw, settings.streams, most=events))
    with _quiet():  # a network is slow when it is first used; what it logs comes again below
        _denoise(DenoiseRouter(dry, router.denoiser), _first_events(documents))
    audited = _denoise(router, documents)
    seconds = audited.seconds
    if settings.audit:
        plain = DenoiseRouter(dry.model_copy(update={"audit": False}), router.denoiser)
        with _quiet():  # all has been said
            seconds = _denoise(plain, documents).seconds
    if not audited.events:
        why = audited.reason or f"it has no frames in {', '.join(settings.streams)}"
        raise DenoiseError(f"Run {raw.metadata['start']['uid']} cannot be denoised: {why}")
    return [
        TriedStream(
            name=name,
            frames=list(_frames(documents, name, settings, results)),
            events=[_without_frames(data) for data in results],
            seconds=median(seconds[name]),
            audit_seconds=max(0.0, median(audited.seconds[name]) - median(seconds[name])),
            pace_s=_pace_s(raw, name),
        )
        for name, results in audited.events.items()
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    package = logging.getLogger(__package__)
    level = package.level
    package.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        package.setLevel(level)


def _first_events(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents of a run up to the first event of each stream."""
    begun = set()
    for name, doc in documents:
        if name == "event":
            if doc["descriptor"] in begun:
                continue
            begun.add(doc["descriptor"])
        yield name, doc


@dataclass
class _Pass:
    """Documents of a run that went through a router."""

    events: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """By raw stream, data of the denoised events."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By raw stream, how long each event took."""
    reason: str = ""
    """Of the denoised run."""


def _denoise(router: DenoiseRouter, documents: Iterable[Document]) -> _Pass:
    done, raw_streams, streams = _Pass(), {}, {}

    def take(name: str, doc: Mapping[str, Any]) -> None:
        if name == "descriptor":
            streams[doc["uid"]] = raw_stream_of(doc["name"])
        elif name == "event":
            done.events.setdefault(streams[doc["descriptor"]], []).append(doc["data"])
        elif name == "stop":
            done.reason = doc.get("reason") or ""

    router.subscribe(take)
    for name, doc in documents:
        if name == "descriptor":
            raw_streams[doc["uid"]] = doc["name"]
        began = time.perf_counter()
        router(name, doc)
        if name == "event":
            took = time.perf_counter() - began
            done.seconds.setdefault(raw_streams[doc["descriptor"]], []).append(took)
    router.close("")
    return done


def _frames(
    documents: Iterable[Document],
    stream: str,
    settings: DenoiseSettings,
    results: Sequence[Mapping[str, Any]],
) -> Iterator[TriedFrames]:
    """Say what became of each data key of a stream that has frames."""
    start = next(doc for name, doc in documents if name == "start")
    descriptor = next(
        doc for name, doc in documents if name == "descriptor" and doc["name"] == stream
    )
    for name, key in frame_keys(descriptor, settings.data_keys).items():
        rates = [np.asarray(data[name]) for data in results if name in data]
        if not rates:
            continue
        valid = np.isfinite(rates)  # (events, n, H, W), or without n
        counts = np.nansum([data[f"{name}_raw_total"] for data in results])
        yield TriedFrames(
            name=name,
            shape=valid.shape[-2:],
            exposure=find_exposure(
                descriptor,
                key,
                extra_keys=settings.exposure_keys,
                default_s=settings.exposure_of(name, *also_called(descriptor, name, key)),
                motors=start.get("motors") or (),
            ),
            exposure_s=results[0][f"{name}_exposure_s"],
            counts=counts / valid.sum() if valid.any() else math.nan,
            masked=1 - valid.any(tuple(range(valid.ndim - 2))).mean(),
        )


def _without_frames(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if not np.ndim(value)}


def _pace_s(run: Any, stream: str) -> float | None:
    """Return the mean time from event to event of a raw stream."""
    stop = run.metadata.get("stop") or {}
    number = stop.get("num_events", {}).get(stream)
    return (stop["time"] - run.metadata["start"]["time"]) / number if number else None
