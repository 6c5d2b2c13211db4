"""Detectors that make another exposure of what they are asked for, or several in an event."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from beamline import denoised_here, detector, events_of
from ophyd import Signal
from ophyd.sim import NullStatus

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_exposure_scan,
    denoised_count,
    find_weak_peak,
    paired_exposures,
    short_exposure_wrapper,
)
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay
from bluesky_denoise.testing import UnitDenoiser

STREAMS = ("primary", "reference")
ADAPTIVE = {"relative_error": 0.1, "max_frames": 2, "exposure_s": 0.2}


class Coarse(Signal):
    """Exposes for 0.1 s at least, and 3 s at most."""

    def set(self, value, **kwargs):
        self.put(min(max(float(value), 0.1), 3.0))
        return NullStatus()


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    """Do not wait for readbacks: there are none that are late."""
    monkeypatch.setattr("bluesky_denoise.plans.exposure_values._READBACK_S", 0.0)


@pytest.fixture
def det(motor):
    det = detector(motor, exposure_s=0.5)
    det.exposure_signal = Coarse(name="det_exposure", value=0.5)
    det.exposure_signal.subscribe(lambda value, **kwargs: det.cam.acquire_time.put(value))
    return det


def test_what_a_detector_makes_of_an_exposure_is_recorded_and_told(RE, raw, det, logged):
    RE(short_exposure_wrapper(bp.count([det]), [det], 8))
    assert raw.by_name["start"][0]["exposures"]["det"] == {
        **{"full_s": 0.5, "short_s": 0.1, "factor": 5.0}
    }
    assert "det_exposure was set to 0.0625 s and reads 0.1 s, which is used" in logged()
    RE(paired_exposures([det], num=1, short_s=0.08, long_s=3.1))
    assert raw.by_name["start"][1]["exposures"]["det"] == {"short_s": 0.1, "long_s": 3.0}
    assert det.exposure_signal.get() == 0.5


def test_an_adaptive_scan_counts_what_was_exposed(RE, raw, det, motor):
    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2)
    args = ([det], denoised, "satellite", motor, 0, 1, 2)
    RE(adaptive_exposure_scan(*args, relative_error=0.01, max_frames=3, exposure_s=0.08))
    exposures = [e["satellite_point_exposure_s"] for e in events_of(raw, "points")]
    assert exposures == pytest.approx([0.3, 0.3])
    assert events_of(raw, "total")[0]["satellite_total_exposure_s"] == pytest.approx(0.6)


def exposing_too_short_or_long(det, motor, denoised):
    roi = [det], denoised, "satellite", motor, -1, 1
    return {
        "short": short_exposure_wrapper(bp.count([det]), [det], 20),
        "adaptive": adaptive_exposure_scan(*roi, 3, **ADAPTIVE | {"exposure_s": 0.04}),
        "adaptive reference": adaptive_exposure_scan(
            *roi, 3, **ADAPTIVE, reference_every=1, reference_s=9.0
        ),
        "fine": find_weak_peak(*roi, 7, exposure_s=0.5, fine_exposure_s=9.0),
        "long": paired_exposures([det], short_s=0.2, long_s=9.0),
        "reference": denoised_count([det], denoised=denoised, reference_every=1, reference_s=9.0),
    }


@pytest.mark.parametrize("name", exposing_too_short_or_long(None, None, None))
def test_an_exposure_that_a_detector_cannot_make_is_refused_before_the_run(
    name, RE, raw, det, motor
):
    denoised = denoised_here(RE, UnitDenoiser(), streams=STREAMS)
    with pytest.raises(SettingsError, match=r"det_exposure was set to .* s and reads .* expected"):
        RE(exposing_too_short_or_long(det, motor, denoised)[name])
    assert "start" not in raw.by_name
    assert det.exposure_signal.get() == 0.5


def test_each_of_several_images_counts_as_an_exposure(RE, raw, motor, tmp_path):
    frames = detector(motor).frames
    det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path, num_images=3)
    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2)
    args = ([det], denoised, "satellite", motor, 0, 4, 2)
    RE(adaptive_exposure_scan(*args, relative_error=0.15, max_frames=8, exposure_s=0.5))
    on, beside = events_of(raw, "points")
    shown = ("frames", "exposure_s", "saved_s")
    assert [on[f"satellite_point_{key}"] for key in shown] == [3, 1.5, 3.0]
    assert [beside[f"satellite_point_{key}"] for key in shown] == [9, 4.5, 0.0]
    assert on["satellite_point_reached"]
    error = [e["denoised_satellite_intensity_error"] for e in events_of(raw, "signals")]
    assert on["satellite_point_intensity_error"] == pytest.approx(error[0])
    (total,) = events_of(raw, "total")
    assert total["satellite_total_exposure_s"] == 6.0
    assert total["satellite_total_fixed_exposure_s"] == 9.0


def test_the_exposure_is_read_when_a_run_begins(RE, raw, det):
    def plan():
        yield from bps.mv(det.exposure_signal, 0.25)
        yield from bp.count([det])

    RE(short_exposure_wrapper(plan(), [det], 5))
    assert raw.by_name["start"][0]["exposures"]["det"]["short_s"] == 0.25


class Late(Signal):
    """Reads once what it was before it was changed."""

    before = None

    def set(self, value, **kwargs):
        if value != self.get():
            self.before = self.get()
        self.put(value)
        return NullStatus()

    def read(self):
        reading = super().read()
        if self.before is not None:
            reading[self.name]["value"], self.before = self.before, None
        return reading


@pytest.mark.parametrize("stage_sigs", [{}, {"exposure_signal": 1.0}])
def test_a_readback_that_comes_a_moment_later_is_waited_for(stage_sigs, RE, raw, det, logged):
    det.exposure_signal = Late(name="dwell", value=0.5)
    det.stage_sigs |= stage_sigs
    RE(short_exposure_wrapper(bp.count([det]), [det], 20))
    assert raw.by_name["start"][0]["exposures"]["det"]["short_s"] == (0.05 if stage_sigs else 0.025)
    assert "dwell" not in logged()


def test_a_readback_that_comes_late_after_a_reference_is_waited_for(RE, raw, det, motor):
    det.exposure_signal = Late(name="dwell", value=0.5)
    denoised = denoised_here(RE, UnitDenoiser(), streams=STREAMS, timeout_s=2)
    asked = {"relative_error": 0.01, "max_frames": 2, "exposure_s": 0.1}
    references = {"reference_every": 1, "reference_s": 4.0}
    args = ([det], denoised, "satellite", motor, 0, 1, 2)
    RE(adaptive_exposure_scan(*args, **asked, **references))
    assert raw.by_name["start"][0]["exposures"]["det"]["short_s"] == 0.1
    assert [e["satellite_point_exposure_s"] for e in events_of(raw, "points")] == [0.2, 0.2]


def test_an_exposure_that_could_not_be_put_back_is_told_with_what_it_was(RE, motor, logged):
    det = detector(motor, exposure_s=1.0)
    plan = short_exposure_wrapper(bp.scan([det], motor, -1, 1, 2), [det], 10)
    with pytest.raises(SettingsError, match="give a `relative_set_wrapper` the motors"):
        RE(bpp.relative_set_wrapper(plan))
    assert "was put back to 1 s and reads 2 s: set it by hand" in logged()
