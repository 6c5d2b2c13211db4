"""What a plan can know to be wrong before its run begins."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from bluesky.protocols import Readable, Reading

from ..devices import DenoisedSignals
from ..errors import SettingsError
from ..frame_keys import is_frame_key

__all__ = ["check_detectors", "check_roi", "described", "number"]


def check_roi(denoised: DenoisedSignals, roi: str) -> None:
    """Raise `SettingsError` if the signals have no such ROI."""
    _check_signals(denoised)
    if roi not in denoised.rois:
        known = ", ".join(denoised.rois) or "none"
        raise SettingsError(f"{denoised.name} has no ROI {roi!r}; it has {known}.")


def check_detectors(
    denoised: DenoisedSignals, detectors: Sequence[Readable], stream: str = "primary"
) -> None:
    """Raise `SettingsError` if no detector gives the frames that the signals are of.

    Or if the stream that the frames go into is not denoised. As for the denoiser, a detector
    may be meant by its name. One that does not describe its frames before it is staged, as
    those of ophyd-async and areaDetectors that write files do not, is left to be found out at
    the first point.
    """
    _check_signals(denoised)
    if stream not in denoised.streams:
        raise SettingsError(
            f"{denoised.name} follows the streams {', '.join(denoised.streams)}; the frames of "
            f"this plan go into {stream!r}. Name it in the `streams` of the denoiser."
        )
    wanted = denoised.data_keys
    given: list[str] = []
    for detector in detectors:
        specs = described(detector)
        own = [key for key in wanted if f"{key}_".startswith(f"{detector.name}_")]
        has_frames = any(map(is_frame_key, specs.values()))
        if not specs or detector.name in own or (own and not has_frames):
            return
        given += specs
    if wanted and not set(wanted) & set(given):
        names = ", ".join(detector.name for detector in detectors) or "No detectors"
        raise SettingsError(
            f"{denoised.name} has the numbers of {', '.join(wanted)}; {names} "
            f"read {', '.join(given) or 'nothing'}. Scan the detector that is denoised, or name "
            "its frames in the `data_keys` of the denoiser."
        )


def _check_signals(denoised: Any) -> None:
    if not isinstance(denoised, DenoisedSignals):
        raise SettingsError(
            f"`denoised` is a {type(denoised).__name__}; expected DenoisedSignals, such as "
            "DenoisedSignals(denoise) of a DenoiseProcess."
        )


def described(detector: Any) -> Mapping[str, Any]:
    """Return what a detector describes itself to read; nothing where it cannot do so yet."""
    if inspect.iscoroutinefunction(detector.describe):
        return {}
    try:
        return detector.describe()
    except Exception:
        return {}


def number(readings: Mapping[str, Reading[Any]], denoised: DenoisedSignals, key: str) -> float:
    """Return a number of a reading; NaN where the plan is only looked at."""
    return float(readings.get(f"{denoised.name}_{key}", {"value": float("nan")})["value"])
