"""The steps of an adaptive scan: those that bluesky takes by the same numbers."""

import bluesky.plans as bp
import numpy as np
import pytest
from beamline import denoised_here, events_of
from ophyd.sim import SynSignal

from bluesky_denoise.plans import adaptive_denoised_scan
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import UnitDenoiser

STEPS = {"min_step": 0.05, "max_step": 0.5, "target_delta": 200.0}


@pytest.mark.parametrize(("sign", "backstep"), [(1, False), (-1, True)])
def test_an_adaptive_scan_goes_where_that_of_bluesky_goes(sign, backstep, RE, raw, motor):
    """Downwards as upwards, where bluesky steps back the wrong way."""

    def counts():
        """Return the counts of a peak on nothing, and so flat beside it."""
        return round(1000 * np.exp(-(((abs(motor.position) - 1.5) / 0.2) ** 2)))

    class Lit:
        shape = (48, 48)

        def __call__(self, exposure_s):
            frame = np.zeros(self.shape, np.uint32)
            frame[23, 24] = counts()
            return frame

    def scan(plan, detector, target, sign, stream, **kwargs):
        raw.clear()
        ends = {"start": 0.1 * sign, "stop": 2.6 * sign}
        RE(plan([detector], target, motor, **ends, **STEPS, backstep=backstep, **kwargs))
        return [e["motor"] for e in events_of(raw, stream)]

    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2, audit=False)
    det = ReplayDetector(name="det", frames=Lit(), exposure_s=1.0)
    target = "denoised_satellite_intensity"
    ours = scan(adaptive_denoised_scan, det, target, sign, "signals", denoised=denoised)
    counter = SynSignal(name="counter", func=counts)
    theirs = scan(bp.adaptive_scan, counter, "counter", 1, "primary")
    assert ours == pytest.approx([sign * position for position in theirs])
    assert (min(np.diff(theirs)) < 0) == backstep
