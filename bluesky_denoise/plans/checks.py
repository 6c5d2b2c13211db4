"""What a plan can know to be wrong before its run begins."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from bluesky.protocols import Readable, Reading

from ..devices import DenoisedSignals
from ..errors import SettingsError

__all__ = ["check_detectors", "check_roi", "number"]


def check_roi(denoised: DenoisedSignals, roi: str) -> None:
    """Raise `SettingsError` if the signals have no such ROI."""
    if roi not in denoised.rois:
        known = ", ".join(denoised.rois) or "none"
        raise SettingsError(f"{denoised.name} has no ROI {roi!r}; it has {known}.")


def check_detectors(denoised: DenoisedSignals, detectors: Sequence[Readable]) -> None:
    """Raise `SettingsError` if no detector gives the frames that the signals are of.

    A detector that does not describe itself before it is staged, as those of ophyd-async
    do not, is left to be found out at the first point.
    """
    given: list[str] = []
    for detector in detectors:
        if inspect.iscoroutinefunction(detector.describe):
            return
        try:
            given += detector.describe()
        except Exception:
            return
    if denoised.data_keys and not set(denoised.data_keys) & set(given):
        names = ", ".join(detector.name for detector in detectors) or "No detectors"
        raise SettingsError(
            f"{denoised.name} has the numbers of {', '.join(denoised.data_keys)}; {names} "
            f"read {', '.join(given) or 'nothing'}. Scan the detector that is denoised, or name "
            "its frames in the `data_keys` of the denoiser."
        )


def number(readings: Mapping[str, Reading[Any]], denoised: DenoisedSignals, key: str) -> float:
    """Return a number of a reading; NaN where the plan is only looked at."""
    return float(readings.get(f"{denoised.name}_{key}", {"value": float("nan")})["value"])
