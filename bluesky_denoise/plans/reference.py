"""Full exposures at some of the points, to see during a scan whether the model still fits."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import bluesky.plan_stubs as bps
from bluesky.protocols import Reading
from bluesky.utils import MsgGenerator
from ophyd import Component, Device, Kind, Signal

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans.checks import check_above_zero, check_whole, detectors_of, number
from bluesky_denoise.plans.exposure_values import read_values, set_values
from bluesky_denoise.plans.exposures import exposure_readings, exposure_signal, with_exposures
from bluesky_denoise.plans.positions import read_positions

__all__ = ["ReferencePoints", "reference_points"]

logger = logging.getLogger(__name__)

_STREAM = "reference"
_DISAGREE_SIGMA = 4.0
_ROUNDED = 1.01
"""By which factor a detector may round an exposure."""
_NAN = float("nan")


class ReferencePoints:
    """Take a full exposure at each n-th point, and compare the denoised numbers with it.

    The stream ``reference`` has the full exposures, ``reference_signals`` their numbers,
    and ``agreement`` for each ROI ``<roi>_pull``, the difference of the intensities in
    standard deviations, and ``<roi>_denoised_ratio``, what the network makes of the short
    frame over what it makes of the full one.

    Parameters
    ----------
    denoised :
        Its denoiser must be set to denoise the stream ``reference`` as well.
    every :
        Each n-th point, beginning with the first.
    exposure_s :
        The full exposure, seconds.

    Raises
    ------
    SettingsError
        If the stream ``reference`` is not denoised, `every` is no whole number above 0, or
        `exposure_s` is not above 0.
    """

    def __init__(self, denoised: DenoisedSignals, every: int, exposure_s: float) -> None:
        if _STREAM not in denoised.streams:
            raise SettingsError(
                f"References need a denoiser of the stream {_STREAM!r} too; it is set to "
                f"{', '.join(denoised.streams)}. Set `streams` to ['primary', {_STREAM!r}]."
            )
        check_whole(reference_every=every)
        check_above_zero(reference_s=exposure_s)
        self._denoised, self._every, self.exposure_s = denoised, every, float(exposure_s)
        self._points = 0
        names = [f"{roi}_{what}" for roi in denoised.rois for what in ("pull", "denoised_ratio")]
        components = {name: Component(Signal, value=_NAN, kind=Kind.hinted) for name in names}
        self._agreement = type("Agreement", (Device,), components)(name="agreement")

    def check_longer(self, *exposures_s: float) -> None:
        """Raise `SettingsError` if a frame of the scan is exposed longer than the reference."""
        longest_s = max(exposures_s, default=0.0)
        if self.exposure_s * _ROUNDED < longest_s:
            raise SettingsError(
                f"reference_s is {self.exposure_s!r}, and the frames of the scan are exposed for "
                f"{longest_s:.4g} s; expected a longer exposure than theirs. Give it in seconds, "
                "or expose the frames shorter, by `short_exposure_wrapper` for instance."
            )

    def longer_wrapper(self, plan: MsgGenerator, detectors: Sequence[Any]) -> MsgGenerator:
        """Check before a plan that the reference is longer than what detectors are set to."""
        signals = [exposure_signal(d) for d in detectors_of(self._denoised, detectors)]
        self.check_longer(*(yield from read_values(signals, [self.exposure_s] * len(signals))))
        return (yield from plan)

    def after_point(
        self, detectors: Sequence[Any], step: Mapping[Any, Any], short: Mapping[str, Reading]
    ) -> MsgGenerator:
        """Take the reference of this point if it is one that gets it (a stub).

        Parameters
        ----------
        detectors :
            Those of the scan.
        step :
            Its motors, with their positions at this point.
        short :
            The readings of the signals at the short exposure.
        """
        self._points += 1
        if (self._points - 1) % self._every:
            return
        exposed = with_exposures(detectors)
        signals = [exposure_signal(detector) for detector in exposed]
        readings = exposure_readings(exposed)
        before = yield from read_values(signals)
        yield from bps.checkpoint()
        # A motor may have been moved during a pause.
        yield from set_values(step, step.values())
        yield from set_values(signals, [self.exposure_s] * len(signals))
        # The exposure is read in the event: a descriptor tells that of the first frame only.
        yield from bps.trigger_and_read([*detectors, *readings, *step], _STREAM)
        numbers = f"{_STREAM}_signals"
        with self._denoised.one_stream():
            positions = yield from read_positions(step)
            yield from bps.checkpoint()
            full = yield from bps.trigger_and_read([self._denoised, *positions], numbers)
        yield from set_values(signals, before)
        self._compare(short, full)
        if self._denoised.rois:
            yield from bps.trigger_and_read([self._agreement, *positions], "agreement")

    def _compare(self, short: Mapping[str, Reading], full: Mapping[str, Reading]) -> None:
        for roi in self._denoised.rois:
            intensities, errors, sums = (
                [number(readings, self._denoised, f"{roi}_{what}") for readings in (short, full)]
                for what in ("intensity", "intensity_error", "denoised_sum")
            )
            error = math.hypot(*errors)
            pull = (intensities[0] - intensities[1]) / error if error else _NAN
            ratio = sums[0] / sums[1] if sums[1] else _NAN
            getattr(self._agreement, f"{roi}_pull").put(pull)
            getattr(self._agreement, f"{roi}_denoised_ratio").put(ratio)
            if abs(pull) > _DISAGREE_SIGMA:
                logger.warning(
                    "ROI %s, point %d: the short exposure differs from the reference by %.1f "
                    "standard deviations",
                    *(roi, self._points, pull),
                )


def reference_points(
    denoised: DenoisedSignals, every: int | None, exposure_s: float | None
) -> ReferencePoints | None:
    """Return the references that a plan is asked for; None if it is asked for none.

    Raises
    ------
    SettingsError
        If references are asked for that cannot be had.
    """
    if every is None and exposure_s is not None:
        raise SettingsError(
            "`reference_s` needs `reference_every`: a reference is taken at each how many points?"
        )
    if every is None:
        return None
    if exposure_s is None:
        raise SettingsError("`reference_every` needs `reference_s`, the full exposure in seconds.")
    return ReferencePoints(denoised, every, exposure_s)
