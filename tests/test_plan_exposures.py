"""Short exposures, and what puts the full one back."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest
from beamline import denoised_here, detector, events_of, paused_after
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from ophyd import Component, Device, Signal
from ophyd.sim import DirectImage, SynGauss
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices, soft_signal_rw

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import (
    adaptive_exposure_scan,
    denoised_count,
    exposure_signal,
    find_weak_peak,
    paired_exposures,
    short_exposure_decorator,
    short_exposure_wrapper,
)
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay
from bluesky_denoise.testing import UnitDenoiser


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


def test_a_short_exposure_scan_exposes_shorter_and_says_so(RE, raw, det, motor):
    RE(short_exposure_wrapper(bp.scan([det], motor, -1, 1, 3), [det], 20))
    (start,) = raw.by_name["start"]
    assert start["exposures"] == {"det": {"full_s": 0.5, "short_s": 0.025, "factor": 20}}
    configuration = raw.by_name["descriptor"][0]["configuration"]["det"]["data"]
    assert configuration["det_cam_acquire_time"] == 0.025
    assert det.cam.acquire_time.get() == 0.5


def test_the_decorator_does_the_same(RE, raw, det):
    @short_exposure_decorator([det], 10)
    def plan():
        return (yield from bp.count([det]))

    RE(plan())
    assert raw.by_name["start"][0]["exposures"]["det"]["short_s"] == 0.05
    assert det.cam.acquire_time.get() == 0.5


def test_an_exposure_is_put_back_when_the_plan_fails(RE, det):
    def failing():
        yield from bps.sleep(0)
        raise ValueError("no beam")

    with pytest.raises(ValueError, match="no beam"):
        RE(short_exposure_wrapper(failing(), [det], 20))
    assert det.cam.acquire_time.get() == 0.5


def test_an_exposure_that_cannot_be_put_back_leaves_no_other_short(RE, det):
    class Lost(Signal):
        connected = True

        def set(self, value, **kwargs):  # refuses at once, as a signal of EPICS does
            if not self.connected:
                raise ConnectionError("the IOC is gone")
            return super().set(value, **kwargs)

    class Other(Device):
        exposure_signal = Component(Lost, value=2.0)

    other = Other(name="other")

    def plan():
        yield from bps.null()
        other.exposure_signal.connected = False

    for detectors in ([other, det], [det, other]):
        other.exposure_signal.connected = True
        with pytest.raises(ConnectionError, match="the IOC is gone"):
            RE(short_exposure_wrapper(plan(), detectors, 20))
        assert det.cam.acquire_time.get() == 0.5


@pytest.mark.parametrize("by", ["detector", "camera", "signal", "both"])
def test_an_exposure_that_staging_sets_is_shortened_too(by, RE, raw, det):
    if by == "detector":
        det.stage_sigs["cam.acquire_time"] = 2.0
    elif by in ("camera", "both"):
        det.cam.stage_sigs["acquire_time"] = 2.0
        det.stage_sigs |= {"cam.acquire_time": 5.0} if by == "both" else {}  # before its parts
    else:
        det.stage_sigs[det.cam.acquire_time] = 2.0
    RE(short_exposure_wrapper(bp.count([det], 2), [det], 20))
    assert raw.by_name["start"][0]["exposures"]["det"]["full_s"] == 2.0
    configuration = raw.by_name["descriptor"][0]["configuration"]["det"]["data"]
    assert configuration["det_cam_acquire_time"] == 0.1
    assert det.cam.acquire_time.get() == 0.5


def test_an_adaptive_scan_exposes_as_it_says_whatever_staging_sets(RE, raw, det, motor):
    det.stage_sigs["cam.acquire_time"] = 2.0
    denoised = denoised_here(RE, UnitDenoiser(), timeout_s=2)
    args = ([det], denoised, "satellite", motor, 0, 1, 2)
    RE(adaptive_exposure_scan(*args, relative_error=0.01, max_frames=2, exposure_s=0.1))
    exposures = [e["denoised_det_image_exposure_s"] for e in events_of(raw, "signals")]
    assert exposures == [0.1] * 4


def test_an_ion_chamber_beside_the_detector_is_read_and_not_exposed(RE, raw, det, motor):
    i0 = SynGauss("i0", motor, "motor", center=0, Imax=1e4)
    RE(paired_exposures([det, i0], num=2, short_s=0.05, long_s=1.0))
    (start,) = raw.by_name["start"]
    assert start["exposures"] == {"det": {"short_s": 0.05, "long_s": 1.0}}
    assert len(events_of(raw, "long")) == 2
    assert all("i0" in data for data in events_of(raw, "short"))
    assert det.cam.acquire_time.get() == 0.5


def test_an_ion_chamber_may_be_in_plans_that_react(RE, raw, det, motor):
    i0 = SynGauss("i0", motor, "motor", center=0, Imax=1e4)
    denoised = denoised_here(RE, UnitDenoiser(), streams=["primary", "reference"])
    limits = {"relative_error": 0.5, "max_frames": 2, "exposure_s": 0.1}
    references = {"reference_every": 2, "reference_s": 1.0}
    RE(
        adaptive_exposure_scan(
            [det, i0], denoised, "satellite", motor, -1, 1, 2, **limits, **references
        )
    )
    RE(find_weak_peak([det, i0], denoised, "satellite", motor, -1, 1, 5, exposure_s=0.1))
    assert [start["exposures"].keys() for start in raw.by_name["start"]] == [{"det"}, {"det"}]
    assert "i0" in events_of(raw, "reference")[0]
    assert det.cam.acquire_time.get() == 0.5


def test_a_plan_without_anything_to_expose_is_refused(det, motor):
    i0 = SynGauss("i0", motor, "motor", center=0, Imax=1e4)
    with pytest.raises(SettingsError, match=r"None of the detectors \(i0\) has an exposure"):
        list(paired_exposures([i0], num=2, short_s=0.05, long_s=1.0))
    bare = DirectImage(name="bare", func=lambda: np.ones((20, 20)))
    bare.trigger()
    with pytest.raises(SettingsError, match="'bare' has none of exposure_signal"):
        list(paired_exposures([det, bare], num=2, short_s=0.05, long_s=1.0))


def test_an_ophyd_async_detector_is_exposed_shorter(RE, raw, det, tmp_path):
    with init_devices():
        pilatus = AsyncReplayDetector(
            StaticPathProvider(UUIDFilenameProvider(), tmp_path), det.frames, exposure_s=1.0
        )
    RE(short_exposure_wrapper(bp.count([pilatus]), [pilatus], 4))
    assert raw.by_name["start"][0]["exposures"]["pilatus"]["short_s"] == 0.25
    configuration = raw.by_name["descriptor"][0]["configuration"]["pilatus"]["data"]
    assert configuration["pilatus-driver-acquire_time"] == 0.25


def test_a_detector_of_another_kind_names_its_exposure_itself(det, motor):
    class Other:
        name = "other"
        exposure_signal = det.cam.acquire_time

    assert exposure_signal(Other()) is det.cam.acquire_time
    with pytest.raises(SettingsError, match=r"'motor' has none of exposure_signal, cam.acqu"):
        exposure_signal(motor)
    for factor in (0, "20", None):
        with pytest.raises(SettingsError, match=f"factor is {factor!r}; expected a number above 0"):
            list(short_exposure_wrapper(bp.count([det]), [det], factor))


class Milliseconds(Signal):
    """An exposure in another unit than those of plans."""

    units = "ms"

    def describe(self):
        described = super().describe()
        described[self.name]["units"] = self.units
        return described


def exposing_plans(detectors, motor, denoised):
    """Return every plan that sets exposures, by name."""
    roi = detectors, denoised, "satellite", motor, -1, 1
    asked = {"relative_error": 0.1, "max_frames": 2, "exposure_s": 0.1}
    references = {"reference_every": 1, "reference_s": 1.0}
    return {
        "short_exposure_wrapper": short_exposure_wrapper(bp.count(detectors), detectors, 20),
        "adaptive_exposure_scan": adaptive_exposure_scan(*roi, 3, **asked),
        "find_weak_peak": find_weak_peak(*roi, 7, exposure_s=0.1),
        "paired_exposures": paired_exposures(detectors, short_s=0.1, long_s=1.0),
        "references": denoised_count(detectors, denoised=denoised, **references),
    }


@pytest.mark.parametrize("kind", ["ophyd", "ophyd-async"])
@pytest.mark.parametrize("name", exposing_plans([], None, None))
def test_an_exposure_in_another_unit_is_refused_before_the_run(name, kind, RE, raw, det, motor):
    if kind == "ophyd":
        det.exposure_signal = Milliseconds(name="dwell", value=500.0)
    else:
        with init_devices():
            det.exposure_signal = soft_signal_rw(float, 500.0, name="dwell", units="ms")
    denoised = denoised_here(RE, UnitDenoiser(), streams=["primary", "reference"])
    with pytest.raises(SettingsError, match="dwell is in ms; plans set exposures in seconds"):
        RE(exposing_plans([det], motor, denoised)[name])
    assert "start" not in raw.by_name
    assert exposure_of(RE, det.exposure_signal) == 500.0


@pytest.mark.parametrize("units", ["", "s", "Seconds", "pulses"])
def test_an_exposure_whose_unit_is_no_other_one_of_time_is_one_of_seconds(units, det):
    det.exposure_signal = Milliseconds(name="dwell", value=0.5)
    det.exposure_signal.units = units
    assert exposure_signal(det) is det.exposure_signal


@pytest.mark.parametrize("name", exposing_plans([], None, None))
def test_a_detector_that_is_not_in_a_list_is_refused(name, RE, raw, det, motor):
    denoised = denoised_here(RE, UnitDenoiser(), streams=["primary", "reference"])
    with pytest.raises(SettingsError, match=r"detectors. is ReplayDetector.*; expected a list, s"):
        RE(exposing_plans(det, motor, denoised)[name])
    with pytest.raises(SettingsError, match=r"`detectors` has the text 'det'; expected detectors"):
        RE(exposing_plans(["det"], motor, denoised)[name])
    assert "start" not in raw.by_name


@pytest.fixture(params=["ophyd", "areaDetector files", "ophyd-async"])
def any_detector(request, det, tmp_path):
    if request.param == "ophyd":
        return det
    if request.param == "areaDetector files":
        return AreaDetectorReplay(name="det", frames=det.frames, directory=tmp_path, exposure_s=0.5)
    with init_devices():
        provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
        detector = AsyncReplayDetector(provider, det.frames, exposure_s=0.5, name="det")
    return detector


def exposure_of(RE, signal):
    values = []

    def read():
        values.append((yield from bps.rd(signal)))

    RE(read())
    return values[0]


@pytest.mark.parametrize("then", ["resume", "abort", "stop", "halt"])
@pytest.mark.parametrize("kind", ["short", "paired"])
def test_each_kind_of_detector_gets_its_exposure_back(kind, then, RE, raw, motor, any_detector):
    if kind == "short":
        plan = short_exposure_wrapper(bp.scan([any_detector], motor, -1, 1, 3), [any_detector], 20)
        short_s = 0.025
    else:
        plan = paired_exposures([any_detector], motor, -1, 1, num=3, short_s=0.1, long_s=2.0)
        short_s = 0.1
    with pytest.raises(RunEngineInterrupted):
        RE(paused_after(plan, 1))
    assert RE.state == "paused"
    getattr(RE, then)()
    assert RE.state == "idle"
    assert len(raw.by_name["stop"]) == 1
    # Nothing runs any more after a halt, by its definition.
    assert exposure_of(RE, exposure_signal(any_detector)) == (short_s if then == "halt" else 0.5)


@pytest.fixture(params=["ours", "a plain signal"])
def soft(request, det):
    """Return a detector, and the data key of its exposure."""
    if request.param == "ours":
        return det, "det_cam_acquire_time"
    signal = Signal(name="seconds", value=1)
    det.exposure_signal = signal
    return det, "seconds"


@pytest.mark.thorough
def test_a_coarse_exposure_in_whole_seconds_does_not_round_the_fine_one(RE, tiled, motor, soft):
    det, key = soft
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    denoised = denoised_here(RE, UnitDenoiser())
    args = ([det], denoised, "satellite", motor, -2, 2, 7)
    (uid,) = RE(find_weak_peak(*args, exposure_s=1, fine_exposure_s=0.5, fine_num=5))
    exposures = tiled.client[uid]["primary"][key].read()
    np.testing.assert_array_equal(exposures, [1.0] * 7 + [0.5] * 5)


def test_exposures_in_whole_seconds_are_described_as_floats(RE, raw, motor, soft):
    det, key = soft
    RE(paired_exposures([det], num=1, short_s=1, long_s=2))
    denoised = denoised_here(RE, UnitDenoiser(), streams=["primary", "reference"])
    args = ([det], denoised, "satellite", motor, 0, 1, 1)
    limits = {"relative_error": 0.5, "max_frames": 1, "exposure_s": 1}
    RE(adaptive_exposure_scan(*args, **limits, reference_every=1, reference_s=2))
    described = [
        d["data_keys"][key]["dtype"] for d in raw.by_name["descriptor"] if key in d["data_keys"]
    ]
    assert described == ["number"] * 3  # short, long, reference
