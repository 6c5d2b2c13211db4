"""Find a weak peak with short exposures, and scan it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import NamedMovable, Readable, Reading
from bluesky.utils import MsgGenerator, get_hinted_fields
from ophyd import Component, Device, Kind, Signal

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans.by_name import denoised_by_name
from bluesky_denoise.plans.checks import (
    check_above_zero,
    check_detectors,
    check_number_of,
    check_roi,
    check_whole,
    number,
)
from bluesky_denoise.plans.exposure_values import tried_wrapper
from bluesky_denoise.plans.exposures import (
    exposure_readings,
    exposure_signal,
    set_exposure_wrapper,
    with_exposures,
)
from bluesky_denoise.plans.peak_search import LEAST_P_VALUE, PeakCandidate, search_peak
from bluesky_denoise.plans.reference import reference_points
from bluesky_denoise.plans.scans import plan_metadata, read_denoised, shown_in_wrapper

__all__ = ["find_weak_peak"]

logger = logging.getLogger(__name__)

_COARSE_CHANCE = 0.1
"""A peak of the coarse scan is looked at if such a one comes by chance this seldom."""
_NAN = float("nan")


class _WeakPeak(Device):
    """What was found."""

    found = Component(Signal, value=False, kind=Kind.hinted)
    center = Component(Signal, value=_NAN, kind=Kind.hinted)
    width = Component(Signal, value=_NAN, kind=Kind.hinted)
    coarse_significance = Component(Signal, value=_NAN, kind=Kind.normal)
    coarse_p_value = Component(Signal, value=_NAN, kind=Kind.normal)
    fine_significance = Component(Signal, value=_NAN, kind=Kind.hinted)
    fine_p_value = Component(Signal, value=_NAN, kind=Kind.normal)


@denoised_by_name
def find_weak_peak(
    detectors: Sequence[Readable],
    denoised: DenoisedSignals,
    roi: str,
    motor: NamedMovable,
    start: float,
    stop: float,
    num: int,
    *,
    exposure_s: float,
    fine_num: int = 15,
    fine_exposure_s: float | None = None,
    false_alarm: float = 0.002,
    reference_every: int | None = None,
    reference_s: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[PeakCandidate | None]:
    """Look for a peak of an ROI in a coarse scan, and scan finely around it.

    A peak is what rises above a straight line under it, so that an even slope is none.
    The coarse scan proposes the most significant peak, if such a one comes by chance in
    fewer than one of ten scans. The fine scan, whose frames are new, must then show it
    again: only both together make a find. The streams ``coarse_signals`` and
    ``fine_signals`` have the denoised numbers, ``weak_peak`` what was found.

    Parameters
    ----------
    detectors, motor, start, stop, num :
        As `bluesky.plans.scan` has them; at least 5 points.
    denoised :
        The signals; second, or by name, as in the other plans.
    roi :
        Name of the ROI.
    exposure_s :
        Of the frames of the coarse scan, seconds, > 0.
    fine_num :
        Points of the fine scan, at least 5. It reaches three widths of the peak to either
        side, three steps of the coarse scan at least, and never further than that scan.
    fine_exposure_s :
        Of its frames, seconds, > 0; None: as the coarse ones.
    false_alarm :
        Highest chance of a find where there is no peak, over both scans, from 5e-6; it holds for
        Gaussian noise, and is up to four times as high at two counts in a point.
    reference_every, reference_s :
        As :func:`denoised_scan` has them, in both scans.
    md :
        Metadata.

    Returns
    -------
    PeakCandidate or None
        From the fine scan, at what the motor reads there, also in a relative scan; None where
        there is no peak. It is the value of ``yield from``,
        and the ``plan_result`` of what ``RE(...)`` returns if the RunEngine was made with
        ``call_returns_result=True``.

    Raises
    ------
    SettingsError
        If there is no such ROI, no detector is the one that is denoised, or a number is not
        as it must be, or an exposure none that the detector can make.
    """
    check_roi(denoised, roi)
    check_detectors(denoised, detectors)
    check_number_of(denoised, f"{roi}_intensity", detectors)
    least = _COARSE_CHANCE * LEAST_P_VALUE
    fine_s = exposure_s if fine_exposure_s is None else fine_exposure_s
    check_whole(num=num, fine_num=fine_num)
    num, fine_num = int(num), int(fine_num)
    check_above_zero(false_alarm=false_alarm, exposure_s=exposure_s, fine_exposure_s=fine_s)
    if min(num, fine_num) < 5 or not least <= false_alarm < 1:
        raise SettingsError(
            f"num {num!r}, fine_num {fine_num!r}, false_alarm {false_alarm!r}; expected at least 5 "
            f"points, and a chance between {least:.1g} and 1: 0.002 is 0.2 %."
        )
    if start == stop:
        raise SettingsError(f"The scan begins and ends at {start!r}; expected a way between.")
    # The two scans are independent: their chances multiply.
    coarse_chance = max(_COARSE_CHANCE, false_alarm)
    fine_chance = false_alarm / coarse_chance
    exposed = with_exposures(detectors)
    exposures = [exposure_signal(detector) for detector in exposed]
    exposures_read = exposure_readings(exposed)
    reference = reference_points(denoised, reference_every, reference_s)
    if reference is not None:
        reference.check_longer(exposure_s, fine_s)
    result = _WeakPeak(name=f"{roi}_peak")
    args = {
        **{"roi": roi, "start": start, "stop": stop, "num": num, "exposure_s": exposure_s},
        **{"fine_num": fine_num, "fine_exposure_s": fine_exposure_s, "false_alarm": false_alarm},
    }
    _md = plan_metadata("find_weak_peak", detectors, motor, args, md)

    def search(
        first: float, last: float, points: int, stream: str
    ) -> MsgGenerator[PeakCandidate | None]:
        positions = np.linspace(first, last, points)
        intensities, errors = [], []
        for position in positions:
            yield from bps.checkpoint()
            yield from bps.mv(motor, position)
            yield from bps.trigger_and_read([*detectors, *exposures_read, motor])
            readings = yield from read_denoised(denoised, [motor], stream=stream)
            if reference is not None:
                yield from reference.after_point(detectors, {motor: position}, readings)
            if (read := _position(motor, readings)) is not None:
                offsets.append(read - position)
            intensities.append(number(readings, denoised, f"{roi}_intensity"))
            errors.append(number(readings, denoised, f"{roi}_intensity_error"))
        return search_peak(positions, intensities, errors)

    def as_read(found: PeakCandidate) -> PeakCandidate:
        """Return a peak at what the motor reads there, which is elsewhere in relative scans."""
        return replace(found, position=found.position + float(np.median(offsets or [0.0])))

    @bpp.stage_decorator([*detectors, motor])
    @bpp.run_decorator(md=_md)
    def scan() -> MsgGenerator[None]:
        coarse = yield from search(start, stop, num, "coarse_signals")
        fine = None
        if coarse is not None and coarse.p_value <= coarse_chance:
            low, high = sorted((start, stop))
            step = (high - low) / (num - 1)
            reach = max(3 * coarse.width, 3 * step)
            first, last = max(low, coarse.position - reach), min(high, coarse.position + reach)
            for signal in exposures:
                yield from bps.mv(signal, float(fine_s))
            fine = yield from search(first, last, fine_num, "fine_signals")
        fine = fine and as_read(fine)
        found = fine if fine is not None and fine.p_value <= fine_chance else None
        for name, candidate in (("coarse", coarse), ("fine", fine)):
            significance = candidate.significance if candidate else _NAN
            getattr(result, f"{name}_significance").put(significance)
            getattr(result, f"{name}_p_value").put(candidate.p_value if candidate else _NAN)
        result.found.put(found is not None)
        result.center.put(found.position if found else _NAN)
        result.width.put(found.width if found else _NAN)
        yield from bps.checkpoint()
        yield from bps.trigger_and_read([result], "weak_peak")
        logger.info("ROI %s: %s", roi, found or "no peak")
        finds.append(found)

    offsets: list[float] = []  # of what the motor reads to where it was sent

    # Bluesky's decorators of runs return the uid, whatever the plan in them returns.
    finds: list[PeakCandidate | None] = []

    plan = shown_in_wrapper(scan(), "coarse_signals")
    plan = tried_wrapper(plan, exposures, fine_exposure_s, reference_s)
    yield from set_exposure_wrapper(plan, exposed, exposure_s)
    return finds[0]


def _position(motor: NamedMovable, readings: Mapping[str, Reading]) -> float | None:
    """Return what a motor reads; None if that is no number."""
    key = next((key for key in [*get_hinted_fields(motor), motor.name] if key in readings), None)
    value = None if key is None else readings[key]["value"]
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
