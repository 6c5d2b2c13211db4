"""The numbers that go with each denoised frame: which there are, and how they come about."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bluesky_denoise.audit import audit_frame
from bluesky_denoise.frame_checks import valid_pixels
from bluesky_denoise.frames import Frame
from bluesky_denoise.roi import ROI, measure_rois

__all__ = [
    "ROI_NUMBERS",
    "Regions",
    "audit",
    "audit_keys",
    "event_keys",
    "hinted_keys",
    "measure",
    "number_keys",
]

Regions = Mapping[str, Mapping[str, ROI]]
"""By data key, the regions of its frames by name."""

ROI_NUMBERS = {
    "intensity": "counts / s",
    "intensity_error": "counts / s",
    "background": "counts / s / pixel",
    "background_error": "counts / s",
    "raw_sum": "counts / s",
    "raw_sum_error": "counts / s",
    "denoised_sum": "counts / s",
    "center_row": "pixel",
    "center_row_error": "pixel",
    "center_col": "pixel",
    "center_col_error": "pixel",
    "width_row": "pixel",
    "width_row_error": "pixel",
    "width_col": "pixel",
    "width_col_error": "pixel",
    "significance": "",
}
"""Fields of `ROIValues` that go into events, as ``<name of the ROI>_<field>``; units."""


def number_keys(regions: Mapping[str, Iterable[str]], source: str) -> dict[str, dict[str, Any]]:
    """Return the data keys of the numbers that are measured on frames, and in their regions."""
    keys: dict[str, dict[str, Any]] = {}
    for data_key, rois in regions.items():
        keys[f"{data_key}_raw_total"] = _number(source, "counts", precision=0)
        keys[f"{data_key}_denoised_total"] = _number(source, "counts / s", precision=1)
        keys[f"{data_key}_exposure_s"] = _number(source, "s")
        for name in rois:
            for field, units in ROI_NUMBERS.items():
                keys[f"{name}_{field}"] = _number(source, units, precision=3)
    return keys


def audit_keys(data_keys: Iterable[str], source: str) -> dict[str, dict[str, Any]]:
    """Return the data keys of what the audit measures on frames."""
    return {f"{key}_audit_deviance": _number(source, "", precision=3) for key in data_keys}


def event_keys(source: str) -> dict[str, dict[str, Any]]:
    """Return the data keys that every derived event has."""
    common = {"shape": [], "source": source}
    return {
        "raw_seq_num": {"dtype": "integer", "dtype_numpy": "<i8", **common},
        "latency_s": _number(source, "s", precision=3),
        "denoise_ok": {"dtype": "boolean", "dtype_numpy": "|b1", **common},
        "denoise_reason": {"dtype": "string", **common},
        "denoise_audit": {"dtype": "string", **common},
    }


def hinted_keys(regions: Mapping[str, Iterable[str]]) -> list[str]:
    """Return what LiveTable and BestEffortCallback show: intensities, or else totals."""
    intensities = [f"{name}_intensity" for rois in regions.values() for name in rois]
    return intensities or [f"{data_key}_denoised_total" for data_key in regions]


def measure(
    frame: Frame, rate: np.ndarray, rois: Mapping[str, ROI], denoiser: Any
) -> dict[str, float]:
    """Measure the frames of one event; of several, counts are summed and rates are means.

    Parameters
    ----------
    frame :
        The raw frames.
    rate : (n, H, W), counts / s
        The denoised frames.
    rois :
        Regions by name.
    denoiser :
        Denoises thinned surroundings of the regions.

    Returns
    -------
    dict
        Values by the names of `number_keys`; those of regions only where there are some.
    """
    valid = np.isfinite(rate)
    key = frame.data_key
    numbers = {
        f"{key}_raw_total": float(frame.counts.sum(where=valid, dtype=np.float64)),
        f"{key}_denoised_total": float(rate.sum(where=valid, dtype=np.float64)) / len(rate),
        f"{key}_exposure_s": frame.exposure_s,
    }
    if not rois:
        return numbers
    counts, exposure_s, whole, mask = frame.counts[0], frame.exposure_s, rate[0], frame.mask
    if len(rate) > 1:
        # Summed, the flag of a masked pixel would be taken for a count.
        mask = np.any(~valid_pixels(frame.counts, mask), axis=0)
        counts = np.where(mask, 0, frame.counts).sum(0, dtype=_wider(frame.counts.dtype))
        # Denoised one by one, weak frames do not show what their sum does.
        exposure_s, whole = exposure_s * len(rate), None
    found = measure_rois(counts, exposure_s, rois, denoiser, mask=mask, rate=whole)
    for name, values in found.items():
        told = values.as_dict()
        numbers |= {f"{name}_{field}": float(told[field]) for field in ROI_NUMBERS}
    return numbers


def audit(
    frame: Frame, denoiser: Any, rate_range: tuple[float, float] | None = None
) -> tuple[dict[str, float], str]:
    """Audit the frames of one event on photons that the denoiser has not seen.

    Parameters
    ----------
    frame :
        The raw frames.
    denoiser :
        Denoises half of their photons.
    rate_range :
        Mean counts / s and pixel that are expected; None: any.

    Returns
    -------
    dict
        The deviance, of several frames the one farthest from 1.
    str
        What is wrong; empty if nothing is.
    """
    verdicts = [
        audit_frame(counts, frame.exposure_s, denoiser, mask=frame.mask, rate_range=rate_range)
        for counts in frame.counts
    ]
    told = [v.deviance for v in verdicts if math.isfinite(v.deviance)]
    worst = max(told, key=lambda deviance: abs(deviance - 1), default=math.nan)
    reasons = dict.fromkeys(verdict.reason for verdict in verdicts if not verdict.ok)
    return {f"{frame.data_key}_audit_deviance": worst}, "; ".join(reasons)


def _wider(dtype: np.dtype) -> type:
    return np.int64 if dtype.kind in "iu" else np.float64


def _number(source: str, units: str, **more: Any) -> dict[str, Any]:
    spec = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": source, **more}
    return {**spec, "units": units} if units else spec
