"""Scans that decide from denoised numbers how long to expose, and where to go."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
from bluesky.protocols import NamedMovable, Readable
from bluesky.utils import MsgGenerator
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
    detector_of,
    number,
)
from bluesky_denoise.plans.descriptions import images_per_event
from bluesky_denoise.plans.exposure_values import (
    read_settled,
    read_values,
    set_values,
    tried_wrapper,
)
from bluesky_denoise.plans.exposures import (
    exposure_signal,
    set_exposure_wrapper,
    summed_exposures_signal,
    with_exposures,
)
from bluesky_denoise.plans.reference import reference_points
from bluesky_denoise.plans.scans import (
    plan_metadata,
    read_denoised,
    shown_in_wrapper,
    shown_with_references,
)
from bluesky_denoise.plans.stopping import ExposureTally

__all__ = ["adaptive_denoised_scan", "adaptive_exposure_scan"]

logger = logging.getLogger(__name__)

_NAN = float("nan")


class _Point(Device):
    """What one point of an adaptive exposure scan came to."""

    intensity = Component(Signal, value=_NAN, kind=Kind.hinted)
    intensity_error = Component(Signal, value=_NAN, kind=Kind.hinted)
    frames = Component(Signal, value=0, kind=Kind.hinted)
    # Not hinted, as it follows from the frames: a table of all would not fit into 80 columns.
    exposure_s = Component(Signal, value=0.0, kind=Kind.normal)
    saved_s = Component(Signal, value=0.0, kind=Kind.normal)
    reached = Component(Signal, value=False, kind=Kind.normal)


class _Total(Device):
    """What an adaptive exposure scan came to."""

    exposure_s = Component(Signal, value=0.0, kind=Kind.hinted)
    fixed_exposure_s = Component(Signal, value=0.0, kind=Kind.hinted)
    saved_s = Component(Signal, value=0.0, kind=Kind.hinted)


@denoised_by_name
def adaptive_exposure_scan(
    detectors: Sequence[Readable],
    denoised: DenoisedSignals,
    roi: str,
    motor: NamedMovable,
    start: float,
    stop: float,
    num: int,
    *,
    relative_error: float,
    max_frames: int,
    exposure_s: float,
    absolute_error: float | None = None,
    reference_every: int | None = None,
    reference_s: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan, with short frames at each point until an ROI is known well enough.

    Each frame is an event of ``primary``, its denoised numbers one of ``signals``. For each
    point an event of ``points`` has ``<roi>_point_intensity`` and ``_intensity_error``
    (counts / s) of all its frames together, ``_frames``, ``_exposure_s``, ``_saved_s``
    (seconds saved against ``max_frames``) and ``_reached``. At the end one of ``total`` has
    the exposure of the run, ``<roi>_total_exposure_s``, and that of a scan which exposes
    every point as long as the longest of these, ``_fixed_exposure_s``.

    The decision is from the statistics of raw counts, never from how clean a frame looks;
    see :class:`ExposureTally` for how the bias of stopping early is avoided. Before each
    frame the motor and the exposures are set again: they may have been changed during a pause.

    Parameters
    ----------
    detectors :
        The first exposes the frames of the ROI; all of them are exposed alike.
    denoised :
        The signals; second, or by name, as in the other plans.
    roi :
        Name of the ROI.
    motor, start, stop, num :
        `num` points from `start` to `stop`.
    relative_error :
        Enough once the error is this share of the intensity, between 0 and 1: 0.1 is 10 %.
    max_frames :
        Most frames at a point. A detector that takes several images for an event may go beyond
        by some of these; each of them is a frame.
    exposure_s :
        Of each frame, seconds, > 0. What the detector makes of it is used and recorded.
    absolute_error :
        Also enough once the error is this small, counts / s: it spares points beside the
        peak, which never reach a relative error. Their intensities are not corrected, and too
        low by up to one count over the exposure of the point.
    reference_every, reference_s :
        As :func:`denoised_scan` has them; the last short frame of the point is compared.
    md :
        Metadata.

    Raises
    ------
    SettingsError
        If there is no such ROI, no detector is the one that is denoised, a number is not
        above 0, or the exposure is none that the detector can make.

    Examples
    --------
    >>> RE(adaptive_exposure_scan([det], denoised, "satellite", motor, -1, 1, 21,
    ...                           relative_error=0.1, max_frames=50, exposure_s=0.05))
    """
    check_roi(denoised, roi)
    check_detectors(denoised, detectors)
    check_number_of(denoised, f"{roi}_intensity", detectors)
    check_above_zero(relative_error=relative_error, exposure_s=exposure_s)
    check_whole(num=num, max_frames=max_frames)
    num = int(num)
    if absolute_error is not None:
        check_above_zero(absolute_error=absolute_error)
    if relative_error >= 1:
        raise SettingsError(
            f"relative_error is {relative_error!r}; expected a share below 1, such as 0.1 for 10 %."
        )
    exposed = with_exposures(detectors)
    signals = [exposure_signal(detector) for detector in exposed]
    reference = reference_points(denoised, reference_every, reference_s)
    if reference is not None:
        reference.check_longer(exposure_s)
    point, total = _Point(name=f"{roi}_point"), _Total(name=f"{roi}_total")
    positions = np.linspace(start, stop, num)
    args = {
        **{"roi": roi, "start": start, "stop": stop, "num": num, "exposure_s": exposure_s},
        **{"relative_error": relative_error, "absolute_error": absolute_error},
        "max_frames": max_frames,
    }
    _md = plan_metadata("adaptive_exposure_scan", detectors, motor, args, md)
    _md.setdefault("num_points", num)

    main = exposed.index(detector_of(denoised, f"{roi}_intensity", exposed))
    data_key = denoised.frames_of.get(f"{roi}_intensity")
    images = 0  # of an event; known once there is one
    taken: list[float] = []  # what the detectors make of the exposure; known once it is set
    summed = [s for s in [summed_exposures_signal(exposed[main])] if s is not None]

    def one_point(position: float) -> MsgGenerator[float]:
        """Take a point (a stub); return its exposure, seconds."""
        nonlocal images
        tally = ExposureTally(relative_error, max_frames, absolute_error)
        exposures: list[float] = []  # of the events, seconds
        while not tally.enough:
            yield from bps.checkpoint()
            # At each frame: both may have been changed during a pause.
            asked = [float(exposure_s)] * len(signals)
            yield from set_values(signals, asked)
            taken[:] = yield from read_settled(signals, taken or asked)
            yield from bps.mv(motor, position)
            yield from bps.trigger_and_read([*detectors, motor])
            readings = yield from read_denoised(denoised, [motor])
            if not images:
                yield from bps.checkpoint()
                images = yield from images_per_event(exposed[main], data_key)
            image_s = taken[main] * math.prod((yield from read_values(summed)))
            intensity = number(readings, denoised, f"{roi}_intensity")
            error = number(readings, denoised, f"{roi}_intensity_error")
            exposures.append(images * image_s)
            tally.add(intensity, error, exposures[-1], images)
        if reference is not None:
            yield from reference.after_point(detectors, {motor: position}, readings)
        # Plain values of this plan, put at once: `bps.mv` would wait for NaN to equal NaN.
        point.intensity.put(tally.intensity)
        point.intensity_error.put(tally.error)
        point.frames.put(tally.frames)
        point_s = math.fsum(exposures)
        point.exposure_s.put(point_s)
        point.saved_s.put(math.ceil(max_frames / images) * exposures[-1] - point_s)
        point.reached.put(tally.reached)
        yield from bps.checkpoint()
        yield from bps.mv(motor, position)
        yield from bps.trigger_and_read([point, motor], "points")
        return point_s

    @bpp.stage_decorator([*detectors, motor])
    @bpp.run_decorator(md=_md)
    def scan() -> MsgGenerator[None]:
        spent = []
        for position in positions:
            spent.append((yield from one_point(position)))
        used, fixed = math.fsum(spent), num * max(spent)
        total.exposure_s.put(used)
        total.fixed_exposure_s.put(fixed)
        total.saved_s.put(fixed - used)
        yield from bps.checkpoint()
        yield from bps.trigger_and_read([total], "total")
        logger.info("%d points took %.4g s of exposure instead of %.4g s", num, used, fixed)

    plan = tried_wrapper(shown_in_wrapper(scan(), "points"), signals, reference_s)
    return (yield from set_exposure_wrapper(plan, exposed, exposure_s))


def adaptive_denoised_scan(
    detectors: Sequence[Readable],
    target_field: str,
    motor: NamedMovable,
    start: float,
    stop: float,
    min_step: float,
    max_step: float,
    target_delta: float,
    backstep: bool,
    threshold: float = 0.8,
    *,
    denoised: DenoisedSignals,
    reference_every: int | None = None,
    reference_s: float | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Scan with steps that follow a denoised number, as `bluesky.plans.adaptive_scan` does.

    Parameters
    ----------
    detectors, motor, start, stop, min_step, max_step, backstep, threshold, md :
        As `bluesky.plans.adaptive_scan` has them.
    target_field :
        Data key of a denoised signal, such as ``"denoised_satellite_intensity"``.
    target_delta :
        Wanted change of the target between points.
    denoised :
        The signals; they are read after each point into the stream ``signals``.
    reference_every, reference_s :
        As :func:`denoised_scan` has them.

    Raises
    ------
    SettingsError
        If `denoised` has no such number, no detector is the one that is denoised, the steps are
        not ``0 < min_step < max_step``, `target_delta` or `threshold` is not above 0, or
        `threshold` is above 1 with `backstep`.

    Notes
    -----
    Where a point could not be denoised, the step stays as it is.
    """
    if not 0 < min_step < max_step < math.inf:
        raise SettingsError(f"Steps from {min_step} to {max_step}; expected 0 < min < max.")
    check_above_zero(target_delta=target_delta, threshold=threshold)
    if backstep and threshold > 1:
        raise SettingsError(
            f"threshold is {threshold!r}; expected a share up to 1: above, each step is taken back."
        )
    if start == stop:
        raise SettingsError(f"The scan begins and ends at {start!r}; expected a way between.")
    check_detectors(denoised, detectors)
    specs = denoised.describe().items()
    keys = [key for key, spec in specs if spec["dtype"] in ("number", "integer")]
    if target_field not in keys:
        raise SettingsError(
            f"{denoised.name} has no number {target_field!r}; it has {', '.join(keys)}."
        )
    check_number_of(denoised, target_field.removeprefix(f"{denoised.name}_"), detectors)
    reference = reference_points(denoised, reference_every, reference_s)
    args = {
        **{"target_field": target_field, "start": start, "stop": stop, "min_step": min_step},
        **{"max_step": max_step, "target_delta": target_delta, "backstep": backstep},
        "threshold": threshold,
    }
    _md = plan_metadata("adaptive_denoised_scan", detectors, motor, args, md)
    sign = 1 if stop >= start else -1

    @bpp.stage_decorator([*detectors, motor])
    @bpp.run_decorator(md=_md)
    def scan() -> MsgGenerator[None]:
        # Tiled takes the type of a column from the first point.
        position, step = float(start), (max_step - min_step) / 2
        past, past_position = _NAN, position
        while position * sign < stop * sign:
            yield from bps.checkpoint()
            yield from bps.mv(motor, position)
            yield from bps.trigger_and_read([*detectors, motor])
            readings = yield from read_denoised(denoised, [motor])
            if reference is not None:
                yield from reference.after_point(detectors, {motor: position}, readings)
            value = float(readings.get(target_field, {"value": _NAN})["value"])
            # Points that could not be denoised may lie between the two.
            way = abs(position - past_position)
            slope = abs(value - past) / way if way else _NAN
            if np.isfinite(slope):
                wanted = target_delta / slope if slope else step * 1.1
                new_step = float(np.clip(wanted, min_step, max_step))
                if backstep and new_step < step * threshold:
                    position, value = past_position, past
                    step = new_step
                else:
                    step = 0.2 * new_step + 0.8 * step
            if np.isfinite(value):
                past, past_position = value, position
            position += step * sign

    return (yield from shown_with_references(scan(), detectors, reference))
