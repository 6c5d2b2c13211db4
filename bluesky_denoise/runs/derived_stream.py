"""One stream of a derived run: its descriptor, its file, its events."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import event_model
import numpy as np
from event_model.documents import RunStart

from bluesky_denoise.runs.frame_store import GROUP, FrameStore
from bluesky_denoise.runs.results import Regions, audit_keys, event_keys, hinted_keys, number_keys
from bluesky_denoise.sources.frame_keys import RAW_KEY, SIGMA

__all__ = ["DerivedEvent", "DerivedStream"]

logger = logging.getLogger(__name__)

_SCALARS = frozenset({"number", "integer", "boolean", "string"})


@dataclass
class DerivedEvent:
    """What became of one raw event."""

    seq_num: int
    """Number of the raw event in its stream, from 1."""
    time: float
    """Time of the raw event, seconds since the epoch."""
    data: Mapping[str, Any]
    """Values of the raw event."""
    timestamps: Mapping[str, float]
    """Time stamps of the raw event."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By data key, shape (n, H, W) of the raw frames; none where they could not be read, or do not
    fit their mask."""
    rates: dict[str, np.ndarray] = field(default_factory=dict)
    """By data key, (n, H, W) float32, counts / s; none where denoising failed."""
    sigmas: dict[str, np.ndarray] = field(default_factory=dict)
    """By data key, standard errors of `rates`, (n, H, W) float32, counts / s."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What was measured on the frames, under the names of `results.number_keys`
    and `results.audit_keys`."""
    problems: list[str] = field(default_factory=list)
    """Why frames are missing; empty where all is well."""
    audits: dict[str, bool] = field(default_factory=dict)
    """By data key, whether the frames passed the audit; none where they were not audited."""
    latency_s: float = float("nan")
    """From the arrival of the raw event to its result, seconds."""


class DerivedStream:
    """Compose the documents of one stream of a derived run, and save its frames.

    Parameters
    ----------
    name :
        Name of the stream.
    bundle :
        Composes for the derived run.
    descriptor :
        The raw descriptor; data keys of frames under the names that they are to have.
    regions :
        The frames that are denoised, each with its regions by name.
    events :
        The first ones; they tell the shape of the frames.
    emit :
        Called with ``(name, doc)`` for each document.
    directory :
        Tells where frames are saved; None: they travel inside the events.
    save_sigma :
        Save the standard errors of the frames too.
    """

    def __init__(
        self,
        name: str,
        bundle: event_model.ComposeRunBundle,
        descriptor: Mapping[str, Any],
        regions: Regions,
        events: list[DerivedEvent],
        emit: Callable[[str, Mapping[str, Any]], None],
        directory: Callable[[], Path] | None,
        save_sigma: bool,
    ) -> None:
        self.name, self.emitted = name, 0
        self._emit, self._frame_keys = emit, list(regions)
        self._failing: set[str] = set()  # keys of which the last frames could not be saved
        start: Mapping[str, Any] = bundle.start_doc
        specs = descriptor["data_keys"]
        errors = {key + SIGMA: key for key in regions} if save_sigma else {}
        self._sigma_keys = {name: key for name, key in errors.items() if name not in regions}
        seen = {key: _seen_shape(key, events) for key in regions}
        self._unseen = [key for key, shape in seen.items() if shape is None]
        self._row_shapes = {key: _row_shape(specs[key], shape) for key, shape in seen.items()}
        self._row_shapes |= {name: self._row_shapes[key] for name, key in self._sigma_keys.items()}
        source = f"denoise:{start['denoise'].get('model', '')}"
        self._numbers = number_keys(regions, source) | audit_keys(regions, source)
        ours = self._numbers | event_keys(source)
        stamps = {f"ts_{key}" for key in (*specs, *ours)}  # names of columns in Tiled
        # Tables of Tiled do not tell upper from lower case.
        taken = {key.lower() for key in (*ours, *stamps, "time", "seq_num")}
        hidden = sorted(key for key in specs if key.lower() in taken)
        self._tell_of_names(start, sorted(errors.keys() & regions.keys()), hidden)
        self._scalars = [
            key
            for key, spec in specs.items()
            if key not in self._row_shapes
            and key not in hidden
            and "external" not in spec
            and spec["dtype"] in _SCALARS
        ]
        self._store, self._unsaved = self._open_store(directory, start) if directory else (None, "")
        if self._unsaved:  # the numbers go on
            self._row_shapes = {}
        data_keys = {key: dict(specs[key]) for key in self._scalars} | ours
        data_keys |= {
            key: self._frames_spec(specs.get(key, {}), key, source) for key in self._row_shapes
        }
        self._descriptor = bundle.compose_descriptor(
            name=name,
            data_keys=data_keys,
            object_keys=_object_keys(descriptor, data_keys, set(ours)),
            hints=_hints(descriptor, self._scalars, regions),
            configuration={"denoiser": _configuration(start["denoise"], source)},
            # Not after its events, which have the times of the raw ones: Tiled exports by time.
            time=min([time.time(), *(event.time for event in events)]),
        )
        emit("descriptor", self._descriptor.descriptor_doc)
        self._compose_datum: dict[str, Callable[..., Any]] = {}
        if self._store:
            for key in self._row_shapes:
                self._compose_datum[key] = self._announce_file(self._store, key, bundle.start_doc)

    def _tell_of_names(
        self, start: Mapping[str, Any], no_errors: list[str], hidden: list[str]
    ) -> None:
        """Tell of names that two things have, of which one is left out."""
        if no_errors:
            logger.warning(
                "Run %.8s: %s of %r are frames of a detector, so that standard errors of these "
                "names are not saved; rename the detector to have them",
                *(start["original_run_uid"], ", ".join(map(repr, no_errors)), self.name),
            )
        if hidden:
            logger.warning(
                "Run %.8s: the readings %s are in the raw stream alone, for numbers of %r have "
                "these names; rename them to have them there too",
                *(start["original_run_uid"], ", ".join(map(repr, hidden)), self.name),
            )

    def _frames_spec(self, raw: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
        """Return the data key of frames, or of their standard errors."""
        return {
            "dtype": "array",
            "dtype_numpy": "<f4",
            "shape": list(self._row_shapes[key]),
            "units": "counts / s",
            "source": source,
            **({"external": "STREAM:"} if self._store else {}),
            **({RAW_KEY: raw[RAW_KEY]} if RAW_KEY in raw else {}),
        }

    def _announce_file(self, store: FrameStore, key: str, start: RunStart) -> Callable[..., Any]:
        """Emit where the frames of a data key are; return what composes their stream datums."""
        resource, compose = event_model.ComposeStreamResource(start)(
            mimetype="application/x-hdf5",
            uri=_uri(store.path),
            data_key=key,
            parameters={
                "dataset": f"/{GROUP}/{key}",
                "chunk_shape": [1, *self._row_shapes[key]],
                "swmr": True,
            },
        )
        self._emit("stream_resource", resource)
        return compose

    def _open_store(
        self, directory: Callable[[], Path], start: Mapping[str, Any]
    ) -> tuple[FrameStore | None, str]:
        """Make the file; return it, or why it cannot be made."""
        day = datetime.fromtimestamp(start["time"])
        name = f"{start['original_run_uid'][:8]}_{self.name}_{start['uid'][:8]}.h5"
        try:
            of_run = directory()
        except ValueError as error:
            logger.error("Run %.8s: frames are not saved: %s", start["original_run_uid"], error)
            return None, f"the frames could not be saved: {error}"
        path = of_run / f"{day:%Y}" / f"{day:%m}" / f"{day:%d}" / name
        about = {"original_run_uid": start["original_run_uid"], "run_uid": start["uid"]}
        try:
            return FrameStore(path, self._row_shapes, about), ""
        except OSError as error:
            logger.error("%s: %s cannot be written: %s", self.name, path, error)
            return None, f"the frames could not be saved in {path.parent}: {error}"

    def add(self, events: list[DerivedEvent]) -> None:
        """Emit the documents of some events, and save their frames."""
        rows = {key: self._rows(key, events) for key in self._row_shapes}
        if self._unsaved:
            for event in events:
                event.problems.append(self._unsaved)
        if self._store:
            self._save(self._store, rows, events)
        for i, event in enumerate(events):
            data = {key: event.data.get(key) for key in self._scalars} | self._results(event)
            if not self._store:
                data |= {key: rows[key][i] for key in rows}
            now = time.time()
            stamps = {key: event.timestamps.get(key, now) for key in data}
            self.emitted += 1
            self._emit(
                "event",
                self._descriptor.compose_event(
                    data=data, timestamps=stamps, time=event.time, validate=bool(self._store)
                ),
            )

    def _save(
        self, store: FrameStore, rows: Mapping[str, np.ndarray], events: list[DerivedEvent]
    ) -> None:
        """Save the frames of some events, and emit where they are."""
        for key, array in rows.items():
            try:
                store.append(key, array)
                self._failing.discard(key)
            except OSError as error:
                reason = f"{key!r} could not be saved in {store.path.parent}: {error}"
                self._not_saved(key, events, reason)
            if at := store.grown(key):
                datum = self._compose_datum[key](
                    indices={"start": at.start, "stop": at.stop},
                    seq_nums={"start": at.start + 1, "stop": at.stop + 1},
                    descriptor=self._descriptor.descriptor_doc,
                )
                self._emit("stream_datum", datum)

    def _not_saved(self, key: str, events: list[DerivedEvent], reason: str) -> None:
        """Record why frames could not be saved; their numbers are there all the same."""
        if key not in self._failing:  # a disk stays full for many frames
            logger.error("Frames of %s from here on: %s", self.name, reason)
        self._failing.add(key)
        for event in events:
            event.problems.append(reason)

    def _rows(self, name: str, events: list[DerivedEvent]) -> np.ndarray:
        """Return an array for all events, NaN where there is none; note what does not fit."""
        shape = self._row_shapes[name]
        rows = np.full((len(events), *shape), np.nan, np.float32)
        raw_key = self._sigma_keys.get(name)
        for row, event in zip(rows, events, strict=True):
            frames = event.sigmas.get(raw_key) if raw_key else event.rates.get(name)
            if frames is None:
                continue
            if frames.size == row.size and frames.shape[-2:] == row.shape[-2:]:
                row[...] = frames.reshape(shape)
            elif not raw_key:
                event.problems.append(self._misfit(name, frames.shape))
        return rows

    def _misfit(self, name: str, found: tuple[int, ...]) -> str:
        shape = self._row_shapes[name]
        if name not in self._unseen:
            return f"{name!r} has shape {found}; the first frames of this run had {shape}"
        # In these words, for `catalog` takes such frames for ones that may pass another time.
        return (
            f"{name!r} has shape {found}; it could not be saved in rows of shape {shape}, which is "
            "that of the descriptor, as the first events had no frame that fits: run "
            "`bluesky-denoise catch-up`"
        )

    def _results(self, event: DerivedEvent) -> dict[str, Any]:
        return {key: event.numbers.get(key, math.nan) for key in self._numbers} | {
            "raw_seq_num": event.seq_num,
            "latency_s": event.latency_s,
            "denoise_ok": not event.problems,
            "denoise_reason": "; ".join(event.problems),
            "denoise_audit": _verdict(event.audits, self._frame_keys),
        }

    def close(self) -> None:
        """Close the file."""
        if self._store:
            self._store.close()


def _verdict(audits: Mapping[str, bool], frame_keys: list[str]) -> str:
    if not all(audits.values()):
        return "failed"
    return "passed" if audits.keys() >= set(frame_keys) else "none"


def _seen_shape(key: str, events: list[DerivedEvent]) -> tuple[int, ...] | None:
    """Return the shape (n, H, W) of the first frames that were denoised; else, of those read."""
    denoised = (event.rates[key].shape for event in events if key in event.rates)
    read = (event.shapes[key] for event in events if key in event.shapes)
    return next(itertools.chain(denoised, read), None)


def _row_shape(spec: Mapping[str, Any], shown: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of a row: as the raw key declares it, with the true frame size."""
    declared = tuple(size for size in spec["shape"] if size != 0)
    if shown is None:
        if len(declared) < 2 or None in declared:
            return (1, 1)  # nothing is known: rows of one NaN, with the reason beside them
        return declared[-3:]
    return shown[1:] if shown[0] == 1 and len(declared) != 3 else shown


def _object_keys(
    descriptor: Mapping[str, Any], data_keys: Mapping[str, Any], ours: set[str]
) -> dict[str, list[str]]:
    """Return the raw devices with the keys that are kept, and ``denoiser`` with the new ones."""
    raw = {
        name: [key for key in keys if key in data_keys.keys() - ours]
        for name, keys in descriptor.get("object_keys", {}).items()
    }
    owned = {key for keys in raw.values() for key in keys}
    new = [key for key in data_keys if key not in owned]
    return {name: keys for name, keys in raw.items() if keys} | {"denoiser": new}


def _hints(
    descriptor: Mapping[str, Any], scalars: list[str], regions: Regions
) -> dict[str, dict[str, list[str]]]:
    """Return hints, so that LiveTable and BestEffortCallback show the run untold."""
    hints = {
        name: {"fields": [key for key in hint.get("fields", []) if key in scalars]}
        for name, hint in descriptor.get("hints", {}).items()
    }
    hints = {name: hint for name, hint in hints.items() if hint["fields"]}
    return hints | {"denoiser": {"fields": hinted_keys(regions)}}


def _configuration(provenance: Mapping[str, Any], source: str) -> dict[str, Any]:
    now = time.time()
    values = {
        f"denoiser_{key}": str(provenance[key])
        for key in ("model", "weights_sha256", "device", "version")
        if key in provenance
    }
    return {
        "data": values,
        "timestamps": dict.fromkeys(values, now),
        "data_keys": {key: {"dtype": "string", "shape": [], "source": source} for key in values},
    }


def _uri(path: Path) -> str:
    """Return the address of a file as Tiled understands it, which unescapes nothing."""
    return f"file://localhost/{path.absolute().as_posix().lstrip('/')}"
