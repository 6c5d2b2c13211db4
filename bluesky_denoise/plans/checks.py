"""What a plan can know to be wrong before its run begins."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from bluesky.protocols import Readable, Reading

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.runs.derived_run import is_stream_name
from bluesky_denoise.sources.frame_keys import is_frame_key, is_part

__all__ = [
    "check_above_zero",
    "check_detectors",
    "check_list",
    "check_number_of",
    "check_roi",
    "check_stream",
    "check_whole",
    "described",
    "detector_of",
    "detectors_of",
    "number",
]


def check_above_zero(**values: Any) -> None:
    """Raise `SettingsError` if one of the values is no number above 0."""
    for name, value in values.items():
        is_number = isinstance(value, Real)
        if not is_number or not value > 0:
            raise SettingsError(f"{name} is {value!r}; expected a number above 0.")


def check_whole(**values: Any) -> None:
    """Raise `SettingsError` if one of the values is no whole number above 0; 7.0 is one."""
    check_above_zero(**values)
    for name, value in values.items():
        if value % 1 != 0:
            raise SettingsError(f"{name} is {value!r}; expected a whole number above 0.")


def check_roi(denoised: DenoisedSignals, roi: str) -> None:
    """Raise `SettingsError` if the signals have no such ROI."""
    _check_signals(denoised)
    if roi not in denoised.rois:
        known = ", ".join(denoised.rois) or "none"
        raise SettingsError(f"{denoised.name} has no ROI {roi!r}; it has {known}.")


def check_list(detectors: Any) -> None:
    """Raise `SettingsError` if it is no list, or has names of detectors rather than these."""
    if not isinstance(detectors, Sequence) or isinstance(detectors, str):
        raise SettingsError(f"`detectors` is {detectors!r}; expected a list, such as [det].")
    names = [detector for detector in detectors if isinstance(detector, str)]
    if names:
        raise SettingsError(
            f"`detectors` has the text {', '.join(map(repr, names))}; expected detectors, such as "
            "[det]. The queue server makes devices of names that its user group may use, and "
            "leaves others as text: see user_group_permissions.yaml."
        )


def check_detectors(
    denoised: DenoisedSignals, detectors: Sequence[Readable], stream: str = "primary"
) -> None:
    """Raise `SettingsError` if no detector gives the frames that the signals are of.

    Or if the signals are among them, or the stream that the frames go into is not denoised. As
    for the denoiser, a detector may be meant by its name. One that does not describe its frames
    before it is staged, as those of ophyd-async and areaDetectors that write files do not, is
    left to be found out at the first point.
    """
    _check_signals(denoised)
    check_list(detectors)
    if any(isinstance(detector, DenoisedSignals) for detector in detectors):
        raise SettingsError(
            f"{denoised.name} is among the `detectors`, which are read before there is a result. "
            "Leave it out there: the plan reads it when they have been read."
        )
    if stream not in denoised.streams:
        raise SettingsError(
            f"{denoised.name} follows the streams {', '.join(denoised.streams)}; the frames of "
            f"this plan go into {stream!r}. Name it in the `streams` of the denoiser."
        )
    wanted = _frames_of(denoised)
    if wanted and not _may_read(detectors, wanted):
        raise SettingsError(
            f"{denoised.name} has the numbers of {', '.join(wanted)}; {_what_is_read(detectors)}. "
            "Scan the detector that is denoised, or name its frames in the "
            f"`{'data_keys' if denoised.data_keys else 'rois'}` of the denoiser."
        )


def check_stream(stream: str) -> None:
    """Raise `SettingsError` if the denoiser makes streams of such a name in each run."""
    if is_stream_name(stream):
        raise SettingsError(
            f"`stream` is {stream!r}; the denoiser's results go into 'denoised' and 'denoised_...' "
            "of the run, and Tiled takes a name once. Every other name but those of frames is "
            "free, such as 'signals'."
        )


def check_number_of(
    denoised: DenoisedSignals, attribute: str, detectors: Sequence[Readable]
) -> None:
    """Raise `SettingsError` if a number is of frames that no detector gives.

    As `check_detectors`, where the denoiser is for several detectors.
    """
    data_key = denoised.frames_of.get(attribute)
    if data_key is not None and not _may_read(detectors, [data_key]):
        raise SettingsError(
            f"{denoised.name}_{attribute} is a number of {data_key}; {_what_is_read(detectors)}. "
            "Scan the detector that it is of, or choose a number of one that is scanned."
        )


def detector_of(denoised: DenoisedSignals, attribute: str, detectors: Sequence[Any]) -> Any:
    """Return the detector whose frames a number is of; the first where that cannot be told.

    A region that is set without a data key is of the first frames that the denoiser is for.
    """
    of = denoised.frames_of.get(attribute)
    for data_key in denoised.data_keys if of is None else (of,):
        for detector in detectors:
            if _may_read([detector], [data_key]):
                return detector
    return detectors[0]


def detectors_of(denoised: DenoisedSignals, detectors: Sequence[Any]) -> list[Any]:
    """Return the detectors that may give frames that the signals are of."""
    wanted = _frames_of(denoised)
    return [detector for detector in detectors if not wanted or _may_read([detector], wanted)]


def _frames_of(denoised: DenoisedSignals) -> tuple[str, ...]:
    """Return the frames that signals are of; without data keys, those that regions are set by."""
    return denoised.data_keys or tuple(dict.fromkeys(denoised.frames_of.values()))


def _may_read(detectors: Sequence[Readable], data_keys: Iterable[str]) -> bool:
    """Tell whether detectors may give the frames of one of the data keys."""
    for detector in detectors:
        specs = described(detector)
        own = [key for key in data_keys if is_part(key, detector.name)]
        has_frames = any(map(is_frame_key, specs.values()))
        if not specs or detector.name in own or (own and not has_frames):
            return True
        if any(key in specs for key in data_keys):
            return True
    return False


def _what_is_read(detectors: Sequence[Readable]) -> str:
    names = ", ".join(detector.name for detector in detectors) or "No detectors"
    given = [key for detector in detectors for key in described(detector)]
    return f"{names} read {', '.join(given) or 'nothing'}"


def _check_signals(denoised: Any) -> None:
    if not isinstance(denoised, DenoisedSignals):
        raise SettingsError(
            f"`denoised` is a {type(denoised).__name__}; expected DenoisedSignals, such as "
            "DenoisedSignals(denoise) of a DenoiseProcess."
        )


def described(detector: Any) -> Mapping[str, Any]:
    """Return what a detector describes itself to read; nothing where it cannot do so yet."""
    if inspect.iscoroutinefunction(getattr(detector, "describe", None)):
        return {}
    try:
        return detector.describe()
    except Exception:
        return {}


def number(readings: Mapping[str, Reading[Any]], denoised: DenoisedSignals, key: str) -> float:
    """Return a number of a reading; NaN where the plan is only looked at."""
    return float(readings.get(f"{denoised.name}_{key}", {"value": float("nan")})["value"])
