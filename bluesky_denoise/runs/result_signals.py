"""The numbers of a denoised frame as components of an ophyd device."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ophyd import Component, Kind
from ophyd.signal import InternalSignal

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.runs.results import audit_keys, hinted_keys, number_keys
from bluesky_denoise.sources.frame_keys import is_part

__all__ = ["attribute_of", "default_of", "frames_of", "result_components"]

_NAN = float("nan")


class _Result(InternalSignal):
    """One number of the newest denoised frame; read-only."""

    def __init__(self, *args: Any, units: str = "", precision: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._more: dict[str, Any] = {"units": units} if units else {}
        if precision is not None:
            self._more["precision"] = precision

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the number, with its unit."""
        described = super().describe()
        described[self.name].update(self._more)
        if isinstance(self.get(), bool):
            described[self.name]["dtype"] = "boolean"  # an integer to ophyd
        return described


def result_components(data_keys: tuple[str, ...], rois: tuple[str, ...]) -> dict[str, Component]:
    """Return the components of a device, by attribute."""
    if not data_keys and not rois:
        raise SettingsError(
            "DenoisedSignals is not told which numbers there are; name `data_keys`, such as "
            "['det_image'], and `rois`, or set them for the denoiser."
        )
    regions: dict[str, tuple[str, ...]] = dict.fromkeys(data_keys or ("",), ())
    regions[next(iter(regions))] = rois
    shown = hinted_keys(regions)
    components = {}
    for key, spec in (number_keys(regions, "") | audit_keys(regions, "")).items():
        if data_keys or not key.startswith("_"):
            kind = Kind.hinted if key in shown else Kind.normal
            components[key] = _component(_NAN, kind, spec.get("units", ""), spec.get("precision"))
    components["raw_seq_num"] = _component(0, Kind.normal)
    components["latency_s"] = _component(_NAN, Kind.normal, "s", 3)
    components["denoise_ok"] = _component(False, Kind.normal)
    components["denoise_audit"] = _component("", Kind.normal)
    components["denoise_reason"] = _component("", Kind.normal)
    named = {attribute_of(key): component for key, component in components.items()}
    return {"_result_keys": tuple(components), **named}


def _component(value: Any, kind: Kind, units: str = "", precision: int | None = None) -> Component:
    return Component(_Result, value=value, kind=kind, units=units, precision=precision)


def frames_of(data_keys: tuple[str, ...], rois: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return, by number, the data key of the frames that it is measured on.

    Parameters
    ----------
    data_keys :
        The frames whose totals there are.
    rois :
        By data key or detector, the names of its regions. Those of ``"*"`` are left out: they
        are measured on the first frames that a run has.
    """
    of: dict[str, str] = {}
    for data_key in data_keys:
        of |= dict.fromkeys(
            [*number_keys({data_key: ()}, ""), *audit_keys([data_key], "")], data_key
        )
    for owner, names in rois.items():
        if owner != "*":
            data_key = _called(owner, data_keys)
            numbers = number_keys({"": names}, "")
            of |= {key: data_key for key in numbers if not key.startswith("_")}
    return of


def _called(owner: str, data_keys: tuple[str, ...]) -> str:
    """Return what data keys call the frames of a detector, or those of another name of theirs."""
    alike = [key for key in data_keys if is_part(key, owner) or is_part(owner, key)]
    if owner in data_keys or not alike:
        return owner
    return min(alike, key=lambda key: abs(len(key) - len(owner)))


def attribute_of(key: str) -> str:
    """Return a data key as an attribute: those of ophyd-async have hyphens."""
    attribute = re.sub(r"\W", "_", key)
    return attribute if attribute.isidentifier() else f"_{attribute}"


def default_of(key: str) -> Any:
    """Return what a number is where there is no result."""
    others = {"raw_seq_num": 0, "denoise_ok": False, "denoise_audit": "", "denoise_reason": ""}
    return others.get(key, math.nan)
