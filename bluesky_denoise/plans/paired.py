"""Short and long exposures of the same points, for training and for checking."""

from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
from bluesky.protocols import NamedMovable, Readable
from bluesky.utils import MsgGenerator

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans.checks import check_above_zero, check_detectors
from bluesky_denoise.plans.exposure_values import set_values, try_exposures
from bluesky_denoise.plans.exposures import (
    exposure_readings,
    exposure_signal,
    keep_exposures_wrapper,
    with_exposures,
)
from bluesky_denoise.plans.scans import read_denoised, shown_in_wrapper

__all__ = ["paired_exposures"]


def paired_exposures(
    detectors: Sequence[Readable],
    *args: NamedMovable | Any,
    num: int | None = None,
    short_s: float,
    long_s: float,
    denoised: DenoisedSignals | None = None,
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator[str]:
    """Take a short and a long exposure at each point of a scan, or some without a scan.

    They go into the streams ``short`` and ``long``, each event with its exposure time.
    `training` reads the pairs from there.

    Parameters
    ----------
    detectors :
        Those that expose twice.
    *args :
        As `bluesky.plans.scan` has them; none: `num` pairs without moving anything.
    num :
        Number of points; None: one pair, or the last of `args`.
    short_s, long_s :
        The exposures, seconds, > 0. What the detectors make of them is recorded.
    denoised :
        Read after each short frame, into the stream ``signals``; its denoiser must be set
        to denoise the stream ``short``.
    md :
        Metadata.

    Raises
    ------
    SettingsError
        If an exposure or the number is not above 0, or is none that a detector can make, the
        long one is not the longer, no detector is the one that is denoised, or the stream
        ``short`` is not.

    Examples
    --------
    >>> RE(paired_exposures([det], motor, -1, 1, 11, short_s=0.05, long_s=1.0))
    """
    check_above_zero(short_s=short_s, long_s=long_s)
    if short_s >= long_s:
        raise SettingsError(f"short_s is {short_s!r}, long_s {long_s!r}; expected a longer one.")
    if num is not None and num < 1:
        raise SettingsError(f"num is {num!r}; expected at least 1 pair.")
    if denoised is not None:
        check_detectors(denoised, detectors, "short")
    exposed = with_exposures(detectors)
    signals = [exposure_signal(detector) for detector in exposed]
    readings = exposure_readings(exposed)

    def pair(devices: Sequence[Any], step: Mapping[Any, Any]) -> MsgGenerator:
        for stream, exposure_s in (("short", short_s), ("long", long_s)):
            if stream == "long":
                yield from bps.checkpoint()
                # A motor may have been moved during a pause.
                yield from set_values(step, step.values())
            yield from set_values(signals, [float(exposure_s)] * len(signals))
            # The exposure is read in the event: a descriptor tells that of the first frame only.
            yield from bps.trigger_and_read([*devices, *readings], stream)
            if denoised is not None and stream == "short":
                yield from read_denoised(denoised, list(step))
        return {}

    def per_step(
        detectors: Sequence[Any], step: Mapping[Any, Any], pos_cache: dict[Any, Any]
    ) -> MsgGenerator:
        def take_reading(devices: Sequence[Any]) -> MsgGenerator:
            return (yield from pair(devices, step))

        yield from bps.one_nd_step(detectors, step, pos_cache, take_reading)

    def per_shot(detectors: Sequence[Any]) -> MsgGenerator:
        yield from pair(detectors, {})

    def taken() -> MsgGenerator[str]:
        # Before there is a run: a detector that cannot expose so is refused, or rounds.
        tried = yield from try_exposures(signals, short_s, long_s)
        exposures = {
            detector.name: {"short_s": short, "long_s": long}
            for detector, short, long in zip(exposed, *tried, strict=True)
        }
        _md = {"plan_name": "paired_exposures", "exposures": exposures, **(md or {})}
        if args:
            # It takes less than their types say: the way of reading may be left out.
            plan = bp.scan(detectors, *args, num=num, per_step=per_step, md=_md)  # type: ignore[arg-type]
        else:
            plan = bp.count(detectors, num or 1, per_shot=per_shot, md=_md)  # type: ignore[arg-type]
        return (yield from shown_in_wrapper(plan, "short" if denoised is None else "signals"))

    return (yield from keep_exposures_wrapper(taken(), exposed))
