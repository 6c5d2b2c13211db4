"""How long a frame was exposed: found in an event, a descriptor, or the settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ExposureNotFound
from .frame_keys import is_frame_key

__all__ = ["Exposure", "exposure_keys", "find_exposure", "seconds_per_unit"]

# areaDetector `cam.acquire_time`, ophyd-async `driver-acquire_time`, and the names that
# other detectors use. `acquire_period` is the time between frames and is left out.
_SUFFIXES = ("acquire_time", "exposure_time", "exposure_s", "exposure", "count_time")
_NAMES = {
    1.0: ("", "s", "sec", "secs", "second", "seconds"),
    1e-3: ("ms", "msec", "millisecond", "milliseconds"),
    # The micro sign and the Greek letter look alike.
    1e-6: ("us", "usec", "\u00b5s", "\u03bcs", "microsecond", "microseconds"),
    1e-9: ("ns", "nsec", "nanosecond", "nanoseconds"),
    60.0: ("min", "minute", "minutes"),
}
_SECONDS = {name: factor for factor, names in _NAMES.items() for name in names}


@dataclass(frozen=True)
class Exposure:
    """Where the exposure time of a data key is found."""

    key: str
    """Key it was found under, or ``"settings"``."""
    value_s: float | None
    """Seconds; None where each event carries its own."""
    factor: float = 1.0
    """Multiplies what an event carries, to make seconds of it."""

    def of_event(self, data: Mapping[str, Any]) -> float:
        """Return the exposure of one event, seconds.

        Raises
        ------
        ExposureNotFound
            If the event carries none, or one that is not > 0.
        """
        if self.value_s is not None:
            return self.value_s
        try:
            seconds = float(data[self.key]) * self.factor
        except (KeyError, TypeError, ValueError):
            seconds = float("nan")
        if not seconds > 0:
            raise ExposureNotFound(
                f"exposure {self.key!r} is {data.get(self.key)!r}; expected a number > 0"
            )
        return seconds


def find_exposure(
    descriptor: Mapping[str, Any],
    data_key: str,
    *,
    extra_keys: tuple[str, ...] = (),
    default_s: float | None = None,
    motors: Sequence[str] = (),
) -> Exposure:
    """Find the exposure time of a data key, in the order event, configuration, settings.

    Parameters
    ----------
    descriptor :
        The raw descriptor.
    data_key :
        The data key of the frames.
    extra_keys :
        More keys that may hold the exposure, looked at before the usual ones.
    default_s :
        Seconds, from the settings; used where the documents do not say.
    motors :
        What the plan moves, as the start document has it. Bluesky leaves out of an event what
        belongs to a detector that is read, and writes the configuration once: an exposure that
        is scanned is then recorded for the first frame only.

    Raises
    ------
    ExposureNotFound
        If there is none, with the keys that were looked at; or if it is scanned, and not in
        the events.
    """
    data_keys = descriptor["data_keys"]
    owner = _owner(descriptor, data_key)

    event_keys = {key: data_keys[key] for key in data_keys if key != data_key}
    others = _of_other_detectors(descriptor, owner)
    own = exposure_keys([key for key in event_keys if key not in others], owner)
    unknown = {}  # key -> units that are none of time
    for key in [*(key for key in extra_keys if key in event_keys), *own]:
        if event_keys[key].get("dtype") in ("number", "integer"):
            if (factor := seconds_per_unit(event_keys[key])) is not None:
                return Exposure(key, None, factor)
            unknown[key] = event_keys[key]["units"]

    configurations = descriptor.get("configuration", {})
    for name in [owner, *(n for n in configurations if n != owner)]:
        configuration = configurations.get(name, {})
        values = configuration.get("data", {})
        wanted = extra_keys if name != owner else (*extra_keys, *exposure_keys(values, owner))
        for key in wanted:
            if key in values and _is_positive(values[key]):
                if key in motors:
                    raise ExposureNotFound(_scanned(descriptor, data_key, key))
                spec = configuration.get("data_keys", {}).get(key, {})
                if (factor := seconds_per_unit(spec)) is not None:
                    return Exposure(key, float(values[key]) * factor)
                unknown[key] = spec["units"]

    if default_s is not None:
        return Exposure("settings", default_s)
    looked_at = [*extra_keys, *(f"{owner}*{suffix}" for suffix in _SUFFIXES)]
    present = sorted({*event_keys, *(k for c in configurations.values() for k in c["data"])})
    raise ExposureNotFound(
        f"No exposure time for {data_key!r} in stream {descriptor.get('name')!r}: looked for "
        f"{', '.join(looked_at)} among the event and configuration keys "
        f"({', '.join(present) or 'there are none'}). {_units(unknown)}Set `exposure_s`, or name "
        "the key in `exposure_keys`."
    )


def _scanned(descriptor: Mapping[str, Any], data_key: str, key: str) -> str:
    return (
        f"The exposure of {data_key!r} in stream {descriptor.get('name')!r} is scanned ({key!r} "
        "is among the motors), and its events do not say what it was. Make it one of the "
        'readings of the detector (ophyd: `det.cam.kind = "normal"` and '
        '`det.cam.acquire_time.kind = "normal"`), or take a run for each exposure.'
    )


def _owner(descriptor: Mapping[str, Any], data_key: str) -> str:
    """Return the name of the device that a data key belongs to."""
    for name, keys in descriptor.get("object_keys", {}).items():
        if data_key in keys:
            return name
    return descriptor["data_keys"][data_key].get("object_name", data_key)


def exposure_keys(keys: Iterable[str], owner: str) -> list[str]:
    """Return the keys that tell the exposure of a detector, the likeliest first."""
    return [
        key
        for suffix in _SUFFIXES
        for key in keys
        if _belongs(key, owner) and key.lower().endswith(suffix)
    ]


def _belongs(key: str, owner: str) -> bool:
    """Tell whether a key is of a device: that of `det10` is not of `det1`."""
    return key.startswith(owner) and not key[len(owner) : len(owner) + 1].isalnum()


def _of_other_detectors(descriptor: Mapping[str, Any], owner: str) -> set[str]:
    """Return the keys of other detectors: the name of `det_2` begins with that of `det`."""
    specs = descriptor["data_keys"]
    return {
        key
        for name, keys in descriptor.get("object_keys", {}).items()
        if name != owner and any(is_frame_key(specs[k]) for k in keys if k in specs)
        for key in keys
    }


def _is_positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False


def seconds_per_unit(spec: Mapping[str, Any]) -> float | None:
    """Return the seconds in the unit of a data key, 1 without one; None if it is none of time."""
    return _SECONDS.get(str(spec.get("units") or "").strip().lower())


def _units(unknown: Mapping[str, str]) -> str:
    if not unknown:
        return ""
    found = ", ".join(f"{key} in {units!r}" for key, units in unknown.items())
    return f"Not used, as its unit is none of time: {found}; expected s, ms, us, ns or min. "
