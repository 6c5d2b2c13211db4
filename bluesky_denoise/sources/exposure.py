"""How long a frame was exposed: found in an event, a descriptor, or the settings."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bluesky_denoise.errors import ExposureNotFound
from bluesky_denoise.sources.frame_keys import is_frame_key, is_part

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
    ``acquire_time``), it is that of all. A key of another detector that `extra_keys` names is taken
    only where nothing else is found.

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
    search = _Search(descriptor, data_key, extra_keys, motors)
    if found := search.in_events() or search.in_configuration():
        return found
    if default_s is not None:
        return Exposure("settings", default_s)
    # Last what is named for another detector, which may be exposed with this one.
    if found := search.in_events(of_others=True) or search.in_configuration(of_others=True):
        return found
    raise ExposureNotFound(search.why_not())


class _Search:
    """Where the exposure of a data key may be; remembers what was found and is of no use."""

    def __init__(
        self,
        descriptor: Mapping[str, Any],
        data_key: str,
        extra_keys: tuple[str, ...],
        motors: Sequence[str],
    ) -> None:
        self._descriptor, self._data_key = descriptor, data_key
        self._extra_keys, self._motors = extra_keys, motors
        self._specs = specs = descriptor["data_keys"]
        self._configurations = descriptor.get("configuration", {})
        self._owner = owner = _owner(descriptor, data_key)
        self._others = _other_detectors(descriptor, owner)
        images = [key for key in specs if is_frame_key(specs[key])]
        self._several = [_owner(descriptor, key) for key in images].count(owner) > 1
        self._unknown: dict[str, str] = {}  # key -> units that are none of time
        self._unusable = ""

    def in_events(self, *, of_others: bool = False) -> Exposure | None:
        """Return the first key of the events that is a time: of this detector, or of others."""
        theirs = {key for keys in self._others.values() for key in keys}
        keys = [k for k in self._specs if k != self._data_key and (k in theirs) == of_others]
        own = [] if of_others else exposure_keys(keys, self._owner, self._data_key)
        for key in [*(key for key in self._extra_keys if key in keys), *own]:
            spec = self._specs[key]
            if spec.get("dtype") not in ("number", "integer"):
                continue
            if (factor := self._factor(key, spec)) is not None:
                self._check_is_its_own(key, own)
                return _summed(Exposure(key, None, factor), self._descriptor)
        return None

    def in_configuration(self, *, of_others: bool = False) -> Exposure | None:
        """Return the first time in the configuration of this detector, or in that of others."""
        devices = [
            name
            for name in self._configurations
            if name != self._owner and (name in self._others) == of_others
        ]
        for name in devices if of_others else [self._owner, *devices]:
            configuration = self._configurations.get(name, {})
            values, specs = configuration.get("data", {}), configuration.get("data_keys", {})
            own = exposure_keys(values, self._owner, self._data_key) if name == self._owner else []
            for key in [key for key in (*self._extra_keys, *own) if key in values]:
                if not _is_positive(values[key]):
                    self._unusable = f"{key!r} is {values[key]!r}; expected a number > 0. "
                    continue
                if key in self._motors:
                    raise ExposureNotFound(_scanned(self._descriptor, self._data_key, key))
                if (factor := self._factor(key, specs.get(key, {}))) is not None:
                    differ = [other for other in own if values[other] != values[key]]
                    self._check_is_its_own(key, differ)
                    return _summed(Exposure(key, float(values[key]) * factor), self._descriptor)
        return None

    def _factor(self, key: str, spec: Mapping[str, Any]) -> float | None:
        factor = seconds_per_unit(spec)
        if factor is None:
            self._unknown[key] = spec["units"]
        return factor

    def _check_is_its_own(self, key: str, others: Iterable[str]) -> None:
        """Refuse the exposure of a device with several detectors that may be another's."""
        if not self._several or key in self._extra_keys:
            return
        suffix = next(suffix for suffix in _SUFFIXES if key.lower().endswith(suffix))
        for other in others:
            alike = _alike(other, self._data_key) == _alike(key, self._data_key)
            if other != key and alike and other.lower().endswith(suffix):
                raise ExposureNotFound(
                    f"The exposure of {self._data_key!r} may be {key!r} or {other!r}: both are of "
                    "its device, and neither is named more like it. Name the right one in "
                    "`exposure_keys`, or make a device of each detector."
                )

    def why_not(self) -> str:
        """Say where was looked, and what is there."""
        looked_at = [*self._extra_keys, *(f"{self._owner}*{suffix}" for suffix in _SUFFIXES)]
        configured = (k for c in self._configurations.values() for k in c.get("data", ()))
        present = sorted({*self._specs, *configured} - {self._data_key})
        return (
            f"No exposure time for {self._data_key!r} in stream {self._descriptor.get('name')!r}: "
            f"looked for {', '.join(looked_at)} among the event and configuration keys "
            f"({', '.join(present) or 'there are none'}). {_units(self._unknown)}{self._unusable}"
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
        if is_part(key, owner) and key.lower().endswith(suffix)
    ]


def _alike(key: str, data_key: str) -> int:
    """Return with how many equal letters two keys begin."""
    pairs = zip(key, data_key, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


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


def _other_detectors(descriptor: Mapping[str, Any], owner: str) -> dict[str, list[str]]:
    """Return other detectors with their keys: the name of `det_2` begins with that of `det`."""
    specs = descriptor["data_keys"]
    return {
        name: keys
        for name, keys in descriptor.get("object_keys", {}).items()
        if name != owner and any(is_frame_key(specs[key]) for key in keys if key in specs)
    }


def _is_positive(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):  # a switch, as that of an automatic exposure
        return False
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
