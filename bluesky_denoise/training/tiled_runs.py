"""Pairs from runs in Tiled: short and long exposures, or frames alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bluesky_denoise.errors import DenoiseError, FrameShapeError, TiledUnavailable
from bluesky_denoise.frame_files import usable_mask
from bluesky_denoise.in_tiled.archive import ArchivedStream
from bluesky_denoise.in_tiled.layouts import connect, why_not_opened
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.sources.exposure import Exposure, find_exposure
from bluesky_denoise.sources.frame_keys import is_frame_key
from bluesky_denoise.sources.readers import as_stack
from bluesky_denoise.tiled_address import without_api_key
from bluesky_denoise.training.files import measured_pairs, single_frames
from bluesky_denoise.training.pairs import MeasuredPairs, RecordedPairs

__all__ = [
    "RUN",
    "catalog",
    "open_run",
    "read_run",
    "read_two_runs",
    "run_frames",
]

RUN = "tiled:"
"""What a run begins with where a file may stand, too."""


@dataclass(frozen=True, eq=False)
class _Taken:
    """The frames of one stream."""

    frames: np.ndarray
    """(N, n, H, W): n frames at each of N points."""
    exposures_s: np.ndarray
    """(N,) of one frame; NaN where the documents do not say."""
    positions: dict[str, np.ndarray]
    """(N,) of each motor that was scanned."""
    data_key: str

    def each(self) -> np.ndarray:
        """Return the frames of all points one after another: (N n, H, W)."""
        return self.frames.reshape(-1, *self.frames.shape[2:])

    def sums(self) -> np.ndarray:
        """Sum the frames of each point: (N, H, W)."""
        if self.frames.shape[1] == 1:
            return self.frames[:, 0]
        kind = np.int64 if self.frames.dtype.kind in "biu" else np.float64
        return self.frames.sum(axis=1, dtype=kind)


@contextmanager
def catalog(uri: str) -> Iterator[Any]:
    """Open a Tiled catalog of runs, with the key in TILED_API_KEY, and close it again.

    Parameters
    ----------
    uri : of the server, or of any of its web pages

    Raises
    ------
    SettingsError
        If it is no address.
    TiledUnavailable
        If it cannot be opened.
    """
    settings = DenoiseSettings(tiled_uri=uri)
    try:
        client = connect(settings)
    except Exception as error:  # whatever is wrong with an address, tiled's errors are many
        why = settings.redact(why_not_opened(error))
        raise TiledUnavailable(f"Tiled at {settings.tiled_uri} cannot be opened: {why}") from error
    with client.context:
        yield client


def open_run(client: Any, uid: str, uri: str) -> Any:
    """Return a run of a catalog; an error names the server.

    Raises
    ------
    DenoiseError
        If there is no such run.
    """
    try:
        return client[uid]
    except (KeyError, ValueError) as error:  # ValueError: too short to be told from others
        where, why = without_api_key(uri), str(error).strip("'")
        raise DenoiseError(f"There is no run {uid!r} in the catalog at {where}: {why}") from None


def run_frames(run: Any, stream: str = "primary", data_key: str | None = None) -> np.ndarray:
    """Read all frames of a stream, (n, H, W), as they were counted.

    Parameters
    ----------
    run : of a Tiled catalog
    stream : of the frames
    data_key : of the frames; None: the only one

    Raises
    ------
    DenoiseError
        If stream or data key are missing, or frames differ in shape.
    """
    if stream not in run:
        raise DenoiseError(
            f"Run {_name(run)} has the streams {', '.join(run) or 'none'}; expected {stream}."
        )
    return _taken(run, stream, data_key).each()


def read_run(
    run: Any,
    *,
    short: str = "short",
    long: str = "long",
    single: str = "primary",
    data_key: str | None = None,
    mask: np.ndarray | None = None,
    repeats: bool = False,
) -> RecordedPairs:
    """Read one run: pairs if it has streams of short and long exposures, else single frames.

    Parameters
    ----------
    run : of a Tiled catalog
    short, long : the streams that `~bluesky_denoise.plans.paired_exposures` writes
    single : the stream of a run without them
    data_key : of the frames; None: the only one
    mask : (H, W), nonzero where invalid
    repeats : all single frames show one scene

    Raises
    ------
    DenoiseError
        If a stream or data key is missing, or points or exposures do not fit.
    """
    name = _name(run)
    if short in run and long in run:
        first, second = (_taken(run, stream, data_key) for stream in (short, long))
        return _pairs(name, first, second, mask, {"run": name, "streams": [short, long]})
    if single not in run:
        raise DenoiseError(
            f"Run {name} has the streams {', '.join(run) or 'none'}; expected {short} and "
            f"{long}, or {single}."
        )
    found = _taken(run, single, data_key)
    about = {"run": name, "streams": [single]} | _told(found, "exposure_s")
    known = found.exposures_s[np.isfinite(found.exposures_s)]
    if repeats and len(known) and np.ptp(known) > 0.01 * known.max():
        raise DenoiseError(
            f"Run {name} has exposures of {known.min():g} to {known.max():g} s; repeats are equal "
            "exposures of one scene."
        )
    source = single_frames(found.each(), _bool(mask), name, about, repeats=repeats)
    # A single point can only be cut inside.
    together = found.frames.shape[1] if len(found.frames) > 1 else 1
    return replace(source, per_point=together)


def read_two_runs(
    short: Any,
    long: Any,
    *,
    stream: str = "primary",
    data_key: str | None = None,
    mask: np.ndarray | None = None,
) -> MeasuredPairs:
    """Read a run of short exposures, and one of long exposures at the same points.

    Parameters
    ----------
    short, long : runs of a Tiled catalog
    stream : of the frames, in both
    data_key : of the frames; None: the only one
    mask : (H, W), nonzero where invalid

    Raises
    ------
    DenoiseError
        If stream or data key are missing, or points or exposures do not fit.
    """
    names = [_name(run) for run in (short, long)]
    if short.metadata["start"]["uid"] == long.metadata["start"]["uid"]:
        raise DenoiseError(
            f"Run {names[0]} was given as short and as long exposures; expected two runs. A run "
            "that has both, or single frames, is given alone."
        )
    for run, name in zip((short, long), names, strict=True):
        if stream not in run:
            raise DenoiseError(
                f"Run {name} has the streams {', '.join(run) or 'none'}; expected {stream}."
            )
    first, second = (_taken(run, stream, data_key) for run in (short, long))
    return _pairs("+".join(names), first, second, mask, {"runs": names, "stream": stream})


def _pairs(
    name: str, short: _Taken, long: _Taken, mask: np.ndarray | None, about: dict[str, Any]
) -> MeasuredPairs:
    counts, targets = short.sums(), long.sums()
    if counts.shape != targets.shape:
        raise FrameShapeError(
            f"{name} has short frames {counts.shape} and long frames {targets.shape}; expected as "
            "many of each, of one size. An aborted scan can be cut: give its complete points."
        )
    _check_positions(name, short, long)
    exposures = [taken.exposures_s * taken.frames.shape[1] for taken in (short, long)]
    if not all(np.isfinite(seconds).all() for seconds in exposures):
        raise DenoiseError(
            f"{name} does not say how long each frame was exposed. Read the exposure time in the "
            "event or the configuration, as `paired_exposures` does."
        )
    invalid = usable_mask(counts, _bool(mask), name) | usable_mask(targets, None, name)
    about |= _told(short, "exposure_s") | _told(long, "long_exposure_s")
    return measured_pairs(counts, targets, exposures[1] / exposures[0], invalid, name, about)


def _check_positions(name: str, short: _Taken, long: _Taken) -> None:
    """Refuse pairs of different points: a tenth of a step is allowed."""
    for motor in short.positions.keys() & long.positions.keys():
        there, back = short.positions[motor], long.positions[motor]
        steps = np.abs(np.diff(there))
        # The slow motor of a grid mostly stands still, and only jitters.
        steps = steps[steps > 0.01 * np.ptp(there)]
        allowed = 0.1 * float(np.median(steps)) if len(steps) else 0.0
        away = float(np.abs(there - back).max())
        if away > allowed + 1e-9:
            raise DenoiseError(
                f"{name}: {motor} is up to {away:g} away from where the short frame was taken; "
                f"expected {allowed:g}, a tenth of a step, at most. Short and long frames must "
                "show the same scene."
            )


def _taken(run: Any, stream: str, data_key: str | None) -> _Taken:
    archived = ArchivedStream(run, stream)
    descriptors = archived.descriptors()
    keys = descriptors[0]["data_keys"]
    images = [key for key in keys if is_frame_key(keys[key])]
    frame_key = images[0] if data_key is None and len(images) == 1 else data_key
    if frame_key is None or frame_key not in images:
        raise DenoiseError(
            f"Stream {stream} of run {_name(run)} has frames under {', '.join(images) or 'no key'}"
            f"{'' if data_key is None else f', not under {data_key}'}; name one as data key."
        )
    # There is one more descriptor for each time that the detector was configured.
    motors = run.metadata["start"].get("motors") or ()
    found = {d["uid"]: _exposure(d, frame_key, motors) for d in descriptors}
    motors = [motor for motor in motors if motor in keys]
    frames, exposures, positions = [], [], []
    for event in archived.events():
        data, exposure = event["data"], found[event["descriptor"]]
        frames.append(as_stack(data[frame_key], frame_key))
        exposures.append(exposure.of_event(data) if exposure else np.nan)
        positions.append([float(data[motor]) for motor in motors])
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise FrameShapeError(
            f"Stream {stream} of run {_name(run)} has frames of shapes "
            f"{sorted({frame.shape for frame in frames})}; expected frames of one shape."
        )
    moved = np.array(positions, dtype=float).reshape(len(frames), -1)
    columns = {motor: moved[:, i] for i, motor in enumerate(motors)}
    return _Taken(np.stack(frames), np.array(exposures, dtype=float), columns, frame_key)


def _exposure(descriptor: dict[str, Any], data_key: str, motors: Sequence[str]) -> Exposure | None:
    try:
        return find_exposure(descriptor, data_key, motors=motors)
    except DenoiseError:
        return None


def _told(taken: _Taken, key: str) -> dict[str, Any]:
    """Return the exposures for the card: one number, or least and largest."""
    found = np.unique(taken.exposures_s[np.isfinite(taken.exposures_s)])
    told = [float(value) for value in (found if len(found) < 2 else found[[0, -1]])]
    return {"data_key": taken.data_key} | (
        {key: told[0] if len(told) == 1 else told} if told else {}
    )


def _bool(mask: np.ndarray | None) -> np.ndarray | None:
    return None if mask is None else np.asarray(mask) != 0


def _name(run: Any) -> str:
    return str(run.metadata["start"]["uid"])[:8]
