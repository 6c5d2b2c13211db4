"""Exposures that something else sets meanwhile: a user at a pause, whatever stages a detector."""

from pathlib import Path

import bluesky.plans as bp
import pytest
from beamline import denoised_here, detector, events_of, paused_after
from bluesky.utils import RunEngineInterrupted
from ophyd import Signal
from ophyd.sim import SynGauss
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices, soft_signal_rw
from ophyd_async.sim import SimBlobDetector

from bluesky_denoise.denoised_detector import DenoisedDetector
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import adaptive_exposure_scan, short_exposure_wrapper
from bluesky_denoise.plans.exposures import (
    keep_exposures_wrapper,
    set_exposure_wrapper,
    with_exposures,
)
from bluesky_denoise.testing import UnitDenoiser

ASKED = {"relative_error": 0.05, "max_frames": 3, "exposure_s": 0.1}


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


def test_an_exposure_that_is_changed_at_a_pause_is_set_again_before_the_next_frame(
    RE, raw, det, motor
):
    denoised = denoised_here(RE, UnitDenoiser())
    plan = adaptive_exposure_scan([det], denoised, "satellite", motor, 0, 1, 2, **ASKED)
    with pytest.raises(RunEngineInterrupted):
        RE(paused_after(plan, 3))  # at the second frame: the first one has its results
    det.cam.acquire_time.put(3.0)
    RE.resume()
    totals = [e["denoised_det_image_raw_total"] for e in events_of(raw, "signals")]
    assert len(totals) == 6
    assert max(totals) < 2 * min(totals)
    assert det.cam.acquire_time.get() == 0.5


def test_an_exposure_is_shortened_whatever_stages_its_detector(RE, raw, det):
    det.stage_sigs["cam.acquire_time"] = 2.0
    staged_by_another = DenoisedDetector(det, UnitDenoiser())
    RE(short_exposure_wrapper(bp.count([staged_by_another]), [det], 20))
    assert raw.by_name["start"][0]["exposures"]["det"]["short_s"] == 0.1
    configuration = raw.by_name["descriptor"][0]["configuration"]["det"]["data"]
    assert configuration["det_cam_acquire_time"] == 0.1


def test_a_signal_of_ophyd_async_is_read_beside_the_detector(RE, det):
    with init_devices():
        i0 = soft_signal_rw(float, 5.0)
    assert with_exposures([det, i0]) == [det]


def test_a_counter_that_has_an_exposure_is_exposed_with_the_detector(motor, det):
    counter = SynGauss("counter", motor, "motor", center=0, Imax=1e4)
    assert with_exposures([det, counter]) == [det]
    counter.exposure_signal = Signal(name="preset", value=1.0)
    assert with_exposures([det, counter]) == [det, counter]


def test_a_detector_of_ophyd_async_without_an_exposure_is_refused(RE, det):
    with init_devices():
        blob = SimBlobDetector(StaticPathProvider(UUIDFilenameProvider(), Path()), name="blob")
    with pytest.raises(SettingsError, match="'blob' has none of exposure_signal"):
        with_exposures([det, blob])


WRAPPERS = {
    "keep": keep_exposures_wrapper,
    "shorten": lambda plan, detectors: short_exposure_wrapper(plan, detectors, 20),
    "set": lambda plan, detectors: set_exposure_wrapper(plan, detectors, 0.1),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("wrong", [lambda det: det, lambda det: det.name], ids=["alone", "name"])
def test_wrappers_take_a_list_of_detectors(det, name, wrong):
    with pytest.raises(SettingsError, match=r"`detectors` is .*; expected a list, such as \[det\]"):
        list(WRAPPERS[name](bp.count([det]), wrong(det)))


@pytest.mark.parametrize("exposure_s", [0, -1.0, "1"])
def test_an_exposure_that_is_no_number_above_zero_is_not_set(det, exposure_s):
    with pytest.raises(SettingsError, match=f"exposure_s is {exposure_s!r}; expected a number"):
        list(set_exposure_wrapper(bp.count([det]), [det], exposure_s))


@pytest.mark.parametrize("wrong", [{"max_frames": 3.5}, {"relative_error": 10}])
def test_numbers_that_can_only_be_mistaken_are_refused(RE, det, motor, wrong):
    denoised = denoised_here(RE, UnitDenoiser())
    args = ([det], denoised, "satellite", motor, 0, 1, 2)
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))} is .*; expected a"):
        RE(adaptive_exposure_scan(*args, **ASKED | wrong))
