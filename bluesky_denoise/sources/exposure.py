"""How long a frame was exposed: found in an event, a descriptor, or the settings."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bluesky_denoise.errors import ExposureNotFound
from bluesky_denoise.sources.frame_keys import is_frame_key

__all__ = ["Exposure", "exposure_keys", "find_exposure", "seconds_per_unit"]

# areaDetector `cam.acquire_time`, ophyd-async `driver-acquire_time`, and the names that
# other detectors use. `acquire_period` is the time between frames and is left out.
_SUFFIXES = ("acquire_time", "exposure_time", "exposure_s", "exposure", "count_time")
# areaDetector sums so many exposures into one image.
_TIME, _NUMBER = "acquire_time", "num_exposures"
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
    number_key: str = ""
    """Key of the event that tells how many exposures are summed into a frame; empty: one."""

    def of_event(self, data: Mapping[str, Any]) -> float:
        """Return the exposure of one event, seconds.

        Raises
        ------
        ExposureNotFound
            If the event carries none, or one that is not > 0.
        """
        seconds = self.value_s
        if seconds is None:
            seconds = _above_zero(data, self.key, "exposure") * self.factor
        if self.number_key:
            seconds *= _above_zero(data, self.number_key, "number of exposures")
        return seconds


def _above_zero(data: Mapping[str, Any], key: str, what: str) -> float:
    if _is_positive(data.get(key)):
        return float(data[key])
    raise ExposureNotFound(f"{what} {key!r} is {data.get(key)!r}; expected a number > 0")


def find_exposure(
    descriptor: Mapping[str, Any],
    data_key: str,
    *,
    extra_keys: tuple[str, ...] = (),
    default_s: float | None = None,
    motors: Sequence[str] = (),
) -> Exposure:
    """Find the exposure time of a data key, in the order event, configuration, settings.

    Of a device with several detectors, each has the key that is named most like its frames.
    Where areaDetector sums several exposures into an image (``num_exposures`` beside
    ``acquire_time``), it is that of all.

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
        If there is none, with the keys that were looked at; if it is scanned, and not in
        the events; or if it may be that of another detector of the same device.
    """
    data_keys = descriptor["data_keys"]
    owner = _owner(descriptor, data_key)
    images = [key for key in data_keys if _owner(descriptor, key) == owner]
    several = sum(is_frame_key(data_keys[key]) for key in images) > 1

    event_keys = {key: data_keys[key] for key in data_keys if key != data_key}
    others = _of_other_detectors(descriptor, owner)
    own = exposure_keys([key for key in event_keys if key not in others], owner, data_key)
    unknown = {}  # key -> units that are none of time
    # Its own come first, as in the configuration.
    named = sorted((key for key in extra_keys if key in event_keys), key=others.__contains__)
    for key in [*named, *own]:
        if event_keys[key].get("dtype") in ("number", "integer"):
            if (factor := seconds_per_unit(event_keys[key])) is not None:
                if several and key not in extra_keys:
                    _check_is_its_own(key, own, data_key)
                return _summed(Exposure(key, None, factor), descriptor)
            unknown[key] = event_keys[key]["units"]

    configurations = descriptor.get("configuration", {})
    unusable = ""
    for name in [owner, *(n for n in configurations if n != owner)]:
        configuration = configurations.get(name, {})
        values = configuration.get("data", {})
        own = exposure_keys(values, owner, data_key) if name == owner else []
        for key in (*extra_keys, *own):
            if key in values and not _is_positive(values[key]):
                unusable = f"{key!r} is {values[key]!r}; expected a number > 0. "
            elif key in values:
                if key in motors:
                    raise ExposureNotFound(_scanned(descriptor, data_key, key))
                spec = configuration.get("data_keys", {}).get(key, {})
                if (factor := seconds_per_unit(spec)) is not None:
                    if several and key not in extra_keys:
                        differ = [other for other in own if values[other] != values[key]]
                        _check_is_its_own(key, differ, data_key)
                    return _summed(Exposure(key, float(values[key]) * factor), descriptor)
                unknown[key] = spec["units"]

    if default_s is not None:
        return Exposure("settings", default_s)
    looked_at = [*extra_keys, *(f"{owner}*{suffix}" for suffix in _SUFFIXES)]
    present = sorted(
        {*event_keys, *(k for c in configurations.values() for k in c.get("data", ()))}
    )
    raise ExposureNotFound(
        f"No exposure time for {data_key!r} in stream {descriptor.get('name')!r}: looked for "
        f"{', '.join(looked_at)} among the event and configuration keys "
        f"({', '.join(present) or 'there are none'}). {_units(unknown)}{unusable}"
        "Set `exposure_s`, or name the key in `exposure_keys`."
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


def exposure_keys(keys: Iterable[str], owner: str, data_key: str = "") -> list[str]:
    """Return the keys that tell the exposure of a detector, the likeliest first."""
    near_first = sorted(keys, key=lambda key: -_alike(key, data_key))
    return [
        key
        for suffix in _SUFFIXES
        for key in near_first
        if _belongs(key, owner) and key.lower().endswith(suffix)
    ]


def _alike(key: str, data_key: str) -> int:
    """Return with how many equal letters two keys begin."""
    pairs = zip(key, data_key, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_is_its_own(key: str, others: Iterable[str], data_key: str) -> None:
    """Refuse the exposure of a device with several detectors that may be another's."""
    suffix = next(suffix for suffix in _SUFFIXES if key.lower().endswith(suffix))
    for other in others:
        alike = _alike(other, data_key) == _alike(key, data_key)
        if other != key and alike and other.lower().endswith(suffix):
            raise ExposureNotFound(
                f"The exposure of {data_key!r} may be {key!r} or {other!r}: both are of its "
                "device, and neither is named more like it. Name the right one in "
                "`exposure_keys`, or make a device of each detector."
            )


def _summed(exposure: Exposure, descriptor: Mapping[str, Any]) -> Exposure:
    """Count in that several exposures are summed into a frame."""
    if not exposure.key.lower().endswith(_TIME):
        return exposure
    number_key = exposure.key[: -len(_TIME)] + _NUMBER
    if number_key in descriptor["data_keys"]:
        return replace(exposure, number_key=number_key)
    for configuration in descriptor.get("configuration", {}).values():
        if _is_positive(number := configuration.get("data", {}).get(number_key)):
            if exposure.value_s is None:
                return replace(exposure, factor=exposure.factor * float(number))
            return replace(exposure, value_s=exposure.value_s * float(number))
    return exposure


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
        return 0 < float(value) < math.inf
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
