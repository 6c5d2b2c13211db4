"""What plans write into their runs, and what they refuse before there is one."""

import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from beamline import denoised_here, detector, events_of
from ophyd import Component, Device, Kind, Signal

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.frames import Denoised
from bluesky_denoise.plans import (
    adaptive_denoised_scan,
    adaptive_exposure_scan,
    denoised_count,
    denoised_scan,
    exposure_signal,
    find_weak_peak,
    paired_exposures,
    short_exposure_wrapper,
)
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import UnitDenoiser

STREAMS = ("primary", "reference", "short")
INTENSITY = "denoised_satellite_intensity"


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=0.5)


@pytest.fixture
def denoised(RE):
    return denoised_here(RE, UnitDenoiser(), streams=STREAMS, timeout_s=2)


class Flattering(UnitDenoiser):
    """Shows four times what was counted, without any noise."""

    def denoise(self, counts, exposure_s, mask=None):
        plain = super().denoise(counts, exposure_s, mask)
        return Denoised(rate=4 * plain.rate)


# Exposures


def test_all_detectors_are_exposed_shorter_and_recorded_each_with_its_own(RE, raw, det):
    other = ReplayDetector(name="other", frames=detector().frames, exposure_s=2.0)
    RE(short_exposure_wrapper(bp.count([det, other]), [det, other], 4))
    assert raw.by_name["start"][0]["exposures"] == {
        "det": {"full_s": 0.5, "short_s": 0.125, "factor": 4},
        "other": {"full_s": 2.0, "short_s": 0.5, "factor": 4},
    }
    configuration = raw.by_name["descriptor"][0]["configuration"]
    assert configuration["other"]["data"]["other_cam_acquire_time"] == 0.5
    assert (det.cam.acquire_time.get(), other.cam.acquire_time.get()) == (0.5, 2.0)


def test_plans_within_each_other_record_the_exposures_of_each_detector(RE, raw, det, motor):
    other = ReplayDetector(name="other", frames=detector().frames, exposure_s=2.0)
    plan = short_exposure_wrapper(bp.count([det, other]), [det], 5)
    RE(short_exposure_wrapper(plan, [other], 4))
    assert raw.by_name["start"][-1]["exposures"] == {
        "det": {"full_s": 0.5, "short_s": 0.1, "factor": 5},
        "other": {"full_s": 2.0, "short_s": 0.5, "factor": 4},
    }


def test_the_exposure_of_the_innermost_plan_is_recorded_with_the_full_one(
    RE, raw, det, motor, denoised
):
    args = ([det], denoised, "satellite", motor, 0, 1, 2)
    asked = {"relative_error": 0.1, "max_frames": 2, "exposure_s": 0.1}
    RE(short_exposure_wrapper(adaptive_exposure_scan(*args, **asked), [det], 20))
    assert raw.by_name["start"][-1]["exposures"] == {
        "det": {"full_s": 0.5, "short_s": 0.1, "factor": 5}
    }
    exposures = [e["denoised_det_image_exposure_s"] for e in events_of(raw, "signals")]
    assert set(exposures) == {0.1}
    raw.clear()
    RE(short_exposure_wrapper(paired_exposures([det], short_s=0.1, long_s=1.0), [det], 20))
    assert raw.by_name["start"][-1]["exposures"] == {"det": {"short_s": 0.1, "long_s": 1.0}}
    own = bp.count([det], md={"exposures": "mine"})
    RE(short_exposure_wrapper(own, [det], 5))
    assert raw.by_name["start"][-1]["exposures"] == "mine"


def test_a_detector_s_own_hook_comes_before_what_is_usual(det):
    class Drv(Device):
        acquire_time = Component(Signal, value=1.0)

    class Older(Device):
        drv = Component(Drv)

    class Both(Older):
        exposure_signal = Component(Signal, value=2.0)

    assert exposure_signal(Older(name="older")).get() == 1.0
    assert exposure_signal(Both(name="both")).get() == 2.0


def test_pairs_record_both_exposures(RE, raw, det):
    RE(paired_exposures([det], num=1, short_s=0.1, long_s=1.0))
    assert raw.by_name["start"][0]["exposures"] == {"det": {"short_s": 0.1, "long_s": 1.0}}


@pytest.mark.parametrize("plan", ["pairs", "references", "find_weak_peak"])
def test_a_detector_may_read_its_exposure_itself(plan, RE, raw, det, motor, denoised):
    det.cam.kind = det.cam.acquire_time.kind = Kind.normal
    if plan == "pairs":
        RE(paired_exposures([det], motor, -1, 1, num=2, short_s=0.1, long_s=1.0))
        expected = {"short": [0.1] * 2, "long": [1.0] * 2}
    elif plan == "references":
        RE(denoised_count([det], 2, denoised=denoised, reference_every=1, reference_s=2.0))
        expected = {"primary": [0.5] * 2, "reference": [2.0] * 2}
    else:
        args = ([det], denoised, "satellite", motor, 4, 5, 5)
        RE(find_weak_peak(*args, exposure_s=0.1))
        expected = {"primary": [0.1] * 5}
    for stream, exposures in expected.items():
        assert [e["det_cam_acquire_time"] for e in events_of(raw, stream)] == exposures


# Adaptive scans


def test_how_long_is_exposed_does_not_depend_on_what_the_network_shows(RE, raw, motor):
    frames = {}
    for denoiser in (UnitDenoiser(), Flattering()):
        raw.clear()
        det = detector(seed=3)
        denoised = denoised_here(RE, denoiser, timeout_s=2)
        args = ([det], denoised, "satellite", motor, 0, 1, 3)
        RE(adaptive_exposure_scan(*args, relative_error=0.1, max_frames=30, exposure_s=0.5))
        frames[type(denoiser)] = [e["satellite_point_frames"] for e in events_of(raw, "points")]
        for point in events_of(raw, "points"):
            assert point["satellite_point_intensity"] == pytest.approx(100, abs=40)
    assert frames[UnitDenoiser] == frames[Flattering]


def test_an_adaptive_scan_records_what_each_point_and_all_of_it_saved(RE, raw, motor, denoised):
    args = ([detector(motor)], denoised, "satellite", motor, 0, 4, 3)
    RE(adaptive_exposure_scan(*args, relative_error=0.2, max_frames=6, exposure_s=0.5))
    points = events_of(raw, "points")
    assert raw.by_name["start"][0]["num_points"] == len(points) == 3
    frames = [e["satellite_point_frames"] for e in points]
    assert frames[0] < 6
    assert frames[-1] == 6  # beside the peak the error that is asked for is never reached
    assert [e["satellite_point_reached"] for e in points][::2] == [True, False]
    assert [e["satellite_point_saved_s"] for e in points] == [(6 - n) * 0.5 for n in frames]
    assert [e["satellite_point_exposure_s"] for e in points] == [n * 0.5 for n in frames]
    (total,) = events_of(raw, "total")
    assert total["satellite_total_exposure_s"] == sum(frames) * 0.5
    assert total["satellite_total_fixed_exposure_s"] == 3 * 6 * 0.5
    assert total["satellite_total_saved_s"] == (18 - sum(frames)) * 0.5


def test_an_absolute_error_ends_points_beside_the_peak(RE, raw, motor, denoised):
    args = ([detector(motor)], denoised, "satellite", motor, 4, 5, 2)
    asked = {"relative_error": 0.1, "max_frames": 50, "exposure_s": 1.0, "absolute_error": 10.0}
    RE(adaptive_exposure_scan(*args, **asked))
    points = events_of(raw, "points")
    assert len(points) == 2
    assert all(1 < e["satellite_point_frames"] < 50 for e in points)
    assert all(5.0 < e["satellite_point_intensity_error"] <= 10.0 for e in points)


def adaptive_steps(RE, raw, motor, values, backstep, denoiser=None):
    """Return where an adaptive scan goes when it measures `values`, from 0 to 2."""
    rates = iter(values)

    class Told:
        shape = (48, 48)

        def __call__(self, exposure_s):
            frame = np.zeros(self.shape, np.uint32)
            frame[23, 24] = next(rates, values[-1])
            return frame

    raw.clear()
    denoised = denoised_here(RE, denoiser or UnitDenoiser(), timeout_s=2, on_timeout="nan")
    det = ReplayDetector(name="det", frames=Told(), exposure_s=1.0)
    args = ([det], INTENSITY, motor, 0, 2, 0.1, 1.0, 100.0, backstep, 0.8)
    RE(adaptive_denoised_scan(*args, denoised=denoised))
    return [e["motor"] for e in events_of(raw, "signals")]


def test_an_adaptive_scan_steps_back_where_it_has_gone_too_far(RE, raw, motor):
    flat_then_steep = [1000, 1000, 1000, 9000, 9000, 9000]
    onward = adaptive_steps(RE, raw, motor, flat_then_steep, False)
    assert (np.diff(onward) > 0).all()
    back = adaptive_steps(RE, raw, motor, flat_then_steep, True)
    assert (np.diff(back)[:4] < 0).any()


@pytest.mark.parametrize("backstep", [False, True])
def test_an_adaptive_scan_goes_on_behind_a_point_that_was_not_denoised(backstep, RE, raw, motor):
    """As fast as 100 counts / s in 0.45, the first step, are wanted."""

    class Failing(UnitDenoiser):
        def denoise(self, counts, exposure_s, mask=None):
            if counts.max() == 1200:  # of the third point
                raise RuntimeError("the GPU is lost")
            return super().denoise(counts, exposure_s, mask)

    rising = [1000 + 100 * point for point in range(5)]
    positions = adaptive_steps(RE, raw, motor, rising, backstep, Failing())
    assert np.isnan([e[INTENSITY] for e in events_of(raw, "signals")]).tolist() == [
        *(False, False, True, False, False)
    ]
    assert np.diff(positions) == pytest.approx([0.45] * 4, rel=0.01)


# References


def test_the_agreement_has_the_pull_and_the_ratio_of_short_to_full(RE, raw, det, denoised):
    frames = detector(intensity_cps=1000.0).frames

    class Fading:
        """Half as bright in the full exposure."""

        shape = frames.shape

        def __call__(self, exposure_s):
            return frames(exposure_s if exposure_s < 4 else exposure_s / 2)

    det.frames = Fading()
    RE(denoised_count([det], 3, denoised=denoised, reference_every=2, reference_s=4.0))
    agreement = events_of(raw, "agreement")
    short, full = events_of(raw, "signals")[::2], events_of(raw, "reference_signals")
    assert len(agreement) == len(full) == 2  # of the first and the third
    for told, one, other in zip(agreement, short, full, strict=True):
        error = np.hypot(one[f"{INTENSITY}_error"], other[f"{INTENSITY}_error"])
        pull = (one[INTENSITY] - other[INTENSITY]) / error
        assert told["agreement_satellite_pull"] == pytest.approx(pull)
        ratio = one["denoised_satellite_denoised_sum"] / other["denoised_satellite_denoised_sum"]
        assert told["agreement_satellite_denoised_ratio"] == pytest.approx(ratio)
        assert ratio == pytest.approx(2.0, rel=0.15)


# Weak peaks


def weak_peak(RE, raw, motor, det, denoised, **asked):
    found = []

    def plan():
        found.append((yield from find_weak_peak([det], denoised, "satellite", motor, **asked)))

    RE(plan())
    return found[0], events_of(raw, "weak_peak")[0]


def test_the_fine_scan_stays_near_the_peak_and_has_its_own_exposure(RE, raw, motor, denoised):
    det = detector(motor, width=0.3, centre=1.8)
    asked = {"start": -2, "stop": 2, "num": 17, "exposure_s": 2.0, "fine_num": 9}
    found, told = weak_peak(RE, raw, motor, det, denoised, **asked, fine_exposure_s=4.0)
    assert found.position == told["satellite_peak_center"] == pytest.approx(1.8, abs=0.2)
    assert told["satellite_peak_fine_significance"] == found.significance
    fine = [e["motor"] for e in events_of(raw, "fine_signals")]
    assert len(fine) == 9
    assert 0.5 < min(fine) < 1.4
    assert max(fine) == 2.0  # never further than the coarse scan
    exposures = [e["det_cam_acquire_time"] for e in events_of(raw, "primary")]
    assert exposures == [2.0] * 17 + [4.0] * 9


def test_a_peak_of_a_relative_scan_is_told_at_what_the_motor_reads(RE, raw, motor, denoised):
    motor.set(5.0).wait(10)
    det = detector(motor, width=0.3, centre=5.8)
    asked = {"start": -2, "stop": 2, "num": 13, "exposure_s": 2.0, "fine_num": 9}
    found = []

    def plan():
        peak = find_weak_peak([det], denoised, "satellite", motor, **asked)
        found.append((yield from bpp.relative_set_wrapper(peak, [motor])))

    RE(plan())
    (told,) = events_of(raw, "weak_peak")
    assert found[0].position == told["satellite_peak_center"] == pytest.approx(5.8, abs=0.2)
    assert 4.0 < min(e["motor"] for e in events_of(raw, "fine_signals")) < 5.6


def test_a_peak_that_only_the_coarse_scan_shows_is_not_found(RE, raw, motor, denoised):
    bright, dark = detector(motor, width=0.3).frames, detector(motor, intensity_cps=0.0).frames
    taken = []

    class Gone:
        shape = bright.shape

        def __call__(self, exposure_s):
            taken.append(exposure_s)
            return (bright if len(taken) <= 13 else dark)(exposure_s)

    det = ReplayDetector(name="det", frames=Gone(), exposure_s=1.0)
    asked = {"start": -2, "stop": 2, "num": 13, "exposure_s": 2.0, "fine_num": 9}
    found, told = weak_peak(RE, raw, motor, det, denoised, **asked)
    assert len(taken) == 22
    assert found is None
    assert not told["satellite_peak_found"]
    assert told["satellite_peak_coarse_p_value"] < 0.001
    assert told["satellite_peak_fine_p_value"] > 0.02
    assert np.isnan(told["satellite_peak_center"])


def test_the_chance_that_is_asked_for_decides_what_the_fine_scan_must_show(
    RE, raw, motor, denoised
):
    def scan(false_alarm):
        raw.clear()
        det = detector(motor, seed=3, intensity_cps=40.0, width=0.3)
        asked = {"start": -2, "stop": 2, "num": 13, "exposure_s": 2.0, "fine_num": 9}
        return weak_peak(RE, raw, motor, det, denoised, **asked, false_alarm=false_alarm)

    p_value = scan(0.05)[1]["satellite_peak_fine_p_value"]
    chance = 0.1 * p_value  # the coarse scan lets one of ten pass
    found, told = scan(1.01 * chance)
    assert found.p_value == p_value
    assert told["satellite_peak_found"]
    found, told = scan(0.99 * chance)
    assert found is None
    assert not told["satellite_peak_found"]


def test_a_chance_above_a_tenth_lets_weaker_peaks_of_the_coarse_scan_pass(RE, raw, motor, denoised):
    def scan(false_alarm):
        raw.clear()
        det = detector(motor, seed=2, intensity_cps=0.0)
        asked = {"start": -2, "stop": 2, "num": 9, "exposure_s": 2.0, "fine_num": 5}
        told = weak_peak(RE, raw, motor, det, denoised, **asked, false_alarm=false_alarm)[1]
        return told["satellite_peak_coarse_p_value"], len(events_of(raw, "fine_signals"))

    p_value, points = scan(0.05)
    assert 0.1 < p_value < 0.9
    assert points == 0
    assert scan(0.99 * p_value)[1] == 0
    assert scan(1.01 * p_value)[1] == 5


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num": 4}, "expected at least 5 points"),
        ({"fine_num": 4}, "expected at least 5 points"),
        ({"fine_num": "7"}, "fine_num is '7'; expected a number above 0"),
        ({"num": 7.5}, "num is 7.5; expected a whole number above 0"),
        ({"fine_num": 7.5}, "fine_num is 7.5; expected a whole number above 0"),
        ({"exposure_s": 0.0}, "exposure_s is 0.0; expected a number above 0"),
        ({"exposure_s": "1"}, "exposure_s is '1'; expected a number above 0"),
        ({"fine_exposure_s": 0.0}, "fine_exposure_s is 0.0; expected a number above 0"),
        ({"fine_exposure_s": -1.0}, "fine_exposure_s is -1.0; expected a number above 0"),
        ({"start": 2}, "begins and ends at 2; expected a way between"),
        ({"false_alarm": 1.0}, "a chance between 5e-06 and 1: 0.002 is 0.2 %"),
        ({"false_alarm": 1e-6}, "a chance between 5e-06 and 1"),
    ],
)
def test_a_search_that_cannot_work_is_refused(RE, raw, det, motor, denoised, wrong, message):
    asked = {"start": -2, "stop": 2, "num": 9, "exposure_s": 1.0, **wrong}
    with pytest.raises(SettingsError, match=message):
        RE(find_weak_peak([det], denoised, "satellite", motor, **asked))
    assert "start" not in raw.by_name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"relative_error": 1}, "relative_error is 1; expected .* 0.1 .* 10 %"),
        ({"relative_error": 0}, "relative_error is 0; expected a number above 0"),
        ({"relative_error": "0.1"}, "relative_error is '0.1'; expected a number above 0"),
        ({"absolute_error": -1.0}, "absolute_error is -1.0; expected a number above 0"),
        ({"max_frames": 2.5}, "max_frames is 2.5; expected a whole number"),
        ({"max_frames": 0}, "max_frames is 0; expected a number above 0"),
        ({"num": 0}, "num is 0; expected a number above 0"),
        ({"num": 2.5}, "num is 2.5; expected a whole number above 0"),
    ],
)
def test_an_adaptive_scan_that_cannot_work_is_refused(
    RE, raw, det, motor, denoised, wrong, message
):
    asked = {"num": 3, "relative_error": 0.1, "max_frames": 2, "exposure_s": 1.0, **wrong}
    with pytest.raises(SettingsError, match=message):
        RE(adaptive_exposure_scan([det], denoised, "satellite", motor, -1, 1, **asked))
    assert "start" not in raw.by_name


@pytest.mark.parametrize("steps", [(0.0, 1.0), (0.5, 0.5), (1.0, 0.1), (0.5, np.inf)])
def test_steps_that_cannot_be_are_refused(RE, det, motor, denoised, steps):
    plan = adaptive_denoised_scan(
        [det], INTENSITY, motor, -1, 1, *steps, 1.0, True, denoised=denoised
    )
    with pytest.raises(SettingsError, match=r"expected 0 < min < max"):
        RE(plan)


@pytest.mark.parametrize(
    ("target_delta", "threshold", "message"),
    [
        (0.0, 0.8, "target_delta is 0.0; expected a number above 0"),
        (np.nan, 0.8, "target_delta is nan; expected a number above 0"),
        (1.0, "0.8", "threshold is '0.8'; expected a number above 0"),
        (1.0, 1.01, "threshold is 1.01; expected a share up to 1"),
    ],
)
def test_an_adaptive_scan_that_would_never_get_on_is_refused(
    target_delta, threshold, message, RE, raw, det, motor, denoised
):
    args = ([det], INTENSITY, motor, -1, 1, 0.1, 1.0, target_delta, True, threshold)
    with pytest.raises(SettingsError, match=message):
        RE(adaptive_denoised_scan(*args, denoised=denoised))
    assert "start" not in raw.by_name


def test_an_adaptive_scan_of_no_way_is_refused(RE, det, motor, denoised):
    plan = adaptive_denoised_scan(
        [det], INTENSITY, motor, 1, 1, 0.1, 1.0, 1.0, True, denoised=denoised
    )
    with pytest.raises(SettingsError, match="begins and ends at 1; expected a way between"):
        RE(plan)


def test_hints_of_the_user_are_added_to_those_of_the_plan(RE, raw, det, motor, denoised):
    args = ([det], denoised, "satellite", motor, -1, 1, 2)
    limits = {"relative_error": 0.5, "max_frames": 1, "exposure_s": 0.1}
    RE(adaptive_exposure_scan(*args, **limits, md={"hints": {"gridding": "rectilinear"}}))
    (start,) = raw.by_name["start"]
    assert start["hints"]["gridding"] == "rectilinear"
    assert start["hints"]["dimensions"] == [(["motor"], "points")]


@pytest.mark.parametrize(("every", "exposure_s"), [(0, 1.0), (1, 0.0)])
def test_references_that_cannot_be_are_refused(RE, det, denoised, every, exposure_s):
    plan = denoised_count([det], denoised=denoised, reference_every=every, reference_s=exposure_s)
    with pytest.raises(SettingsError, match=r"reference_.* is 0.*; expected a number above 0"):
        RE(plan)


@pytest.mark.parametrize("plan", ["scan", "adaptive_denoised_scan", "adaptive", "coarse", "fine"])
def test_references_that_are_shorter_than_other_frames_are_refused_before_the_run(
    plan, RE, raw, det, motor, denoised
):
    asked = {"reference_every": 1, "reference_s": 0.4}
    roi = [det], denoised, "satellite", motor, 0, 4, 5
    limits = {"relative_error": 0.2, "max_frames": 4}
    target = "denoised_satellite_intensity", motor, 0, 1, 0.2, 0.4, 20.0, False
    plans = {
        "scan": denoised_scan([det], motor, -1, 1, 3, denoised=denoised, **asked),
        "adaptive_denoised_scan": adaptive_denoised_scan(
            [det], *target, denoised=denoised, **asked
        ),
        "adaptive": adaptive_exposure_scan(*roi, exposure_s=0.5, **limits, **asked),
        "coarse": find_weak_peak(*roi, exposure_s=0.5, fine_exposure_s=0.1, **asked),
        "fine": find_weak_peak(*roi, exposure_s=0.1, fine_exposure_s=0.5, **asked),
    }
    with pytest.raises(SettingsError, match=r"reference_s is 0\.4, and .* exposed for 0\.5 s"):
        RE(plans[plan])
    assert not raw.documents
    assert det.cam.acquire_time.get() == 0.5


def test_references_are_compared_with_shortened_exposures(RE, raw, det, motor, denoised):
    asked = {"reference_every": 1, "reference_s": 0.4}
    plan = denoised_scan([det], motor, -1, 1, 2, denoised=denoised, **asked)
    RE(short_exposure_wrapper(plan, [det], 5))
    assert [e["det_cam_acquire_time"] for e in events_of(raw, "reference")] == [0.4] * 2


def test_pairs_that_cannot_be_are_refused(RE, raw, det, motor, denoised):
    for exposures in ({"short_s": 0.0, "long_s": 1.0}, {"short_s": 0.1, "long_s": -1.0}):
        with pytest.raises(SettingsError, match=r"_s is .*; expected a number above 0"):
            RE(paired_exposures([det], num=1, **exposures))
    with pytest.raises(SettingsError, match=r"short_s is 1, long_s 0\.1; expected a longer one"):
        RE(paired_exposures([det], num=1, short_s=1, long_s=0.1))
    for args in ((), (motor, -1, 1)):
        with pytest.raises(SettingsError, match="num is 0; expected at least 1 pair"):
            RE(paired_exposures([det], *args, num=0, short_s=0.1, long_s=1.0))
    primary_only = denoised_here(RE, UnitDenoiser())
    with pytest.raises(SettingsError, match=r"plan go into 'short'\. Name it in the `st"):
        RE(paired_exposures([det], num=1, short_s=0.1, long_s=1.0, denoised=primary_only))
    assert "start" not in raw.by_name
