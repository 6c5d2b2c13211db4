"""Which keys, streams and runs are denoised, with which exposures and masks."""

import re

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from live_path import (
    SHAPE,
    Camera,
    PlainImage,
    poisson,
    rates,
    settings,
    values,
)
from ophyd.sim import SynAxis, SynSignal

from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
    assert_emitted,
)

# Which keys, streams and runs


def test_two_detectors_are_denoised_in_one_stream(RE, raw, build, motor):
    a, b = poisson(1), poisson(2, (24, 32))
    _, derived = build()
    RE(
        bp.scan(
            [Camera(name="a", func=a), Camera(name="b", func=b, exposure_s=2.0)], motor, 0, 1, 3
        )
    )
    np.testing.assert_array_equal(rates(derived, "a_image"), np.stack(a.taken[-3:]) * 2)
    np.testing.assert_array_equal(rates(derived, "b_image"), np.stack(b.taken[-3:]) / 2)
    assert_emitted(
        derived.by_name,
        **{"start": 1, "descriptor": 1, "stream_resource": 2, "stream_datum": 6},
        **{"event": 3, "stop": 1},
    )


def test_where_one_of_two_detectors_has_no_exposure_the_other_is_denoised(RE, raw, build):
    _, derived = build()
    RE(bp.count([Camera(name="a", func=poisson()), PlainImage(func=poisson(), name="b")], 2))
    assert values(derived, "denoise_ok") == [True, True]
    assert "b" not in derived.by_name["descriptor"][0]["data_keys"]
    stop = derived.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert "No exposure time for 'b'" in stop["reason"]
    assert stop["num_events"] == {"denoised": 2}


def test_only_the_keys_that_are_asked_for_are_denoised(RE, raw, build):
    _, derived = build(data_keys=["a_image"])
    RE(bp.count([Camera(name="a", func=poisson()), Camera(name="b", func=poisson())]))
    keys = derived.by_name["descriptor"][0]["data_keys"]
    assert "a_image" in keys
    assert "b_image" not in keys
    assert derived.by_name["stop"][0]["exit_status"] == "success"


def test_frames_asked_for_by_their_detector_have_its_name_everywhere(RE, raw, build, tmp_path):
    func = poisson()
    mask = np.zeros(SHAPE, bool)
    mask[3, 4] = True
    _, derived = build(
        data_keys=["det"],
        mask={"det": mask},
        rois={"det": {"spot": {"rows": (2, 9), "cols": (2, 9)}}},
        frames_directory=tmp_path,
    )
    RE(bp.count([Camera(name="det", func=func)], 2))
    counts = np.stack(func.taken[-2:]).astype(float)
    counts[:, mask] = np.nan
    np.testing.assert_array_equal(rates(derived, "det"), counts * 2)
    assert values(derived, "det_raw_total") == list(np.nansum(counts, axis=(1, 2)))
    assert np.isfinite(values(derived, "spot_intensity")).all()
    (descriptor,) = derived.by_name["descriptor"]
    assert "det_image" not in descriptor["data_keys"]
    assert descriptor["data_keys"]["det"]["raw_data_key"] == "det_image"
    assert descriptor["object_keys"]["det"] == ["det"]


def test_a_key_without_frames_that_is_asked_for_is_told(RE, raw, build, motor):
    _, derived = build(data_keys=["motor"])
    RE(bp.scan([Camera(name="det", func=poisson())], motor, 0, 1, 2))
    assert (
        "Data key 'motor' has shape []; expected frames (H, W). Name in `data_keys` what holds "
        "images. Frames are in det_image." in (derived.by_name["stop"][0]["reason"])
    )


def test_each_stream_that_is_asked_for_has_a_derived_stream(RE, raw, build):
    dark, light = poisson(1, mean=0.1), poisson(2)
    _, derived = build(streams=["primary", "dark"])
    cameras = Camera(name="dark_cam", func=dark), Camera(name="det", func=light)

    @bpp.run_decorator()
    def plan():
        for _ in range(2):
            yield from bps.trigger_and_read([cameras[0]], name="dark")
            yield from bps.trigger_and_read([cameras[1]], name="primary")
        yield from bps.trigger_and_read([cameras[1]], name="other")

    RE(plan())
    np.testing.assert_array_equal(
        rates(derived, "dark_cam_image", "denoised_dark"), np.stack(dark.taken[-2:]) * 2
    )
    np.testing.assert_array_equal(rates(derived, "det_image"), np.stack(light.taken[-3:-1]) * 2)
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 2, "denoised_dark": 2}


def nested_plan(outer, inner, interleaved):
    """Two runs, of which the second ends before the first, or after it."""
    first, second = bpp.set_run_key_decorator("first"), bpp.set_run_key_decorator("second")

    @first
    def one():
        yield from bps.trigger_and_read([outer])

    @second
    def two():
        yield from bps.trigger_and_read([inner])

    def plan():
        yield from first(bps.open_run)(md={"which": "first"})
        yield from one()
        yield from second(bps.open_run)(md={"which": "second"})
        for step in (two, one, two):
            yield from step()
        ends = (first, second) if interleaved else (second, first)
        for i, run in enumerate(ends):
            yield from run(bps.close_run)()
            if i == 0:
                yield from (two if interleaved else one)()

    return plan()


@pytest.mark.parametrize("interleaved", [False, True], ids=["nested", "interleaved"])
def test_runs_that_are_open_together_are_kept_apart(RE, raw, build, interleaved):
    a, b = poisson(1), poisson(2)
    router, derived = build()
    RE(nested_plan(Camera(name="a", func=a), Camera(name="b", func=b), interleaved))
    assert_emitted(raw.by_name, start=2, descriptor=2, event=5, stop=2)
    starts = {doc["which"]: doc for doc in derived.by_name["start"]}
    stops = {doc["run_start"]: doc for doc in derived.by_name["stop"]}
    numbers = {w: stops[doc["uid"]]["num_events"]["denoised"] for w, doc in starts.items()}
    assert numbers == ({"first": 2, "second": 3} if interleaved else {"first": 3, "second": 2})
    np.testing.assert_array_equal(
        rates(derived, "a_image"), np.stack(a.taken[-numbers["first"] :]) * 2
    )
    np.testing.assert_array_equal(
        rates(derived, "b_image"), np.stack(b.taken[-numbers["second"] :]) * 2
    )
    assert not router._runs
    assert not router._run_of


def test_files_of_runs_that_are_open_together_are_kept_apart(RE, raw, build, tmp_path):
    counts = np.random.default_rng(1).poisson(5, (4, *SHAPE)).astype(np.uint16)
    _, derived = build()
    keys = "first", "second"
    detectors = {
        key: AreaDetectorReplay(
            name=key, frames=ReplayFrames(counts + i, 0.5), exposure_s=0.5, directory=tmp_path
        )
        for i, key in enumerate(keys)
    }

    @bpp.stage_decorator(list(detectors.values()))
    def plan():
        for step in (bps.open_run, None, None, bps.close_run):
            for key, det in detectors.items():
                yield from bpp.set_run_key_wrapper(
                    step() if step else bps.trigger_and_read([det]), key
                )

    RE(plan())
    assert values(derived, "denoise_reason") == [""] * 4
    for i, key in enumerate(keys):
        frames = rates(derived, f"{key}_image").reshape(2, *SHAPE)
        np.testing.assert_array_equal(frames, (counts[:2] + i) * 2)


def test_a_run_without_frames_emits_nothing(RE, raw, build, motor):
    router, derived = build(exposure_s=1.0)
    RE(bp.scan([SynSignal(name="diode", func=lambda: 1.0)], motor, 0, 1, 3))
    RE(bp.count([], 0))
    assert not derived.documents
    assert not router._runs


def test_a_run_with_a_descriptor_but_no_event_has_an_empty_derived_run(RE, raw, build):
    _, derived = build()
    det = Camera(name="det", func=poisson())
    det.trigger()

    @bpp.run_decorator()
    def plan():
        yield from bps.declare_stream(det, name="primary")

    RE(plan())
    assert_emitted(derived.by_name, start=1, stop=1)
    assert derived.by_name["stop"][0]["exit_status"] == "success"


def test_derived_runs_are_never_denoised_again(RE, raw, build):
    router, derived = build(frames_directory=None, exposure_s=1.0)
    again = DocumentCollector()
    RE(bp.count([PlainImage(func=poisson(), name="det")], 2))
    second = DenoiseRouter(settings(exposure_s=1.0, streams=["denoised"]), UnitDenoiser())
    second.subscribe(again)
    second.feed(derived.documents)
    router.feed(list(derived.documents))
    assert not again.documents
    assert_emitted(derived.by_name, start=1, descriptor=1, event=2, stop=1)


def test_raw_runs_that_look_like_derived_ones_are_told_of_once(RE, raw, build, caplog):
    _, derived = build()
    for _ in range(2):
        md = {"denoise": True, "original_run_uid": "the run before"}
        RE(bp.count([Camera(name="det", func=poisson())], 1, md=md))
    assert not derived.documents
    (warned,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert raw.by_name["start"][0]["uid"][:8] in warned
    assert "`original_run_uid` and `denoise` in its metadata say" in warned


# Exposure


def test_the_exposure_is_taken_from_the_configuration_rather_than_the_settings(RE, raw, build):
    _, derived = build(exposure_s=9.0)
    RE(bp.count([Camera(name="det", func=poisson(), exposure_s=0.25)]))
    assert values(derived, "det_image_exposure_s") == [0.25]


def test_each_event_may_have_its_own_exposure(RE, raw, build):
    timer = SynAxis(name="timer")
    func = poisson()
    _, derived = build(exposure_keys=["timer"])
    RE(bp.list_scan([PlainImage(func=func, name="det")], timer, [0.5, 1.0, 2.0]))
    assert values(derived, "det_exposure_s") == [0.5, 1.0, 2.0]
    expected = np.stack(func.taken[-3:]) / np.array([0.5, 1, 2]).reshape(3, 1, 1)
    np.testing.assert_allclose(rates(derived, "det"), expected, rtol=1e-6)


def test_an_event_with_a_wrong_exposure_says_so_and_the_others_are_denoised(RE, raw, build):
    timer = SynAxis(name="timer")
    _, derived = build(exposure_keys=["timer"])
    RE(bp.list_scan([PlainImage(func=poisson(), name="det")], timer, [0.5, 0.0, 2.0]))
    assert values(derived, "denoise_ok") == [True, False, True]
    assert values(derived, "denoise_reason")[1] == (
        "det: exposure 'timer' is 0.0; expected a number > 0"
    )
    assert np.isnan(rates(derived, "det")[1]).all()


@pytest.mark.parametrize("at_once", [False, True])
def test_an_exposure_changed_in_mid_run_counts_from_then_on(RE, raw, build, counts, at_once):
    _, derived = build()
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0), exposure_s=1.0)

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        yield from bps.configure(det, {"cam.acquire_time": 2.0})
        yield from bps.trigger_and_read([det])

    RE(plan())
    assert_emitted(raw.by_name, start=1, descriptor=2, event=2, stop=1)
    if at_once:
        router = DenoiseRouter(settings(), UnitDenoiser())
        derived = DocumentCollector()
        router.subscribe(derived)
        router.feed(raw.documents)
    assert values(derived, "det_image_exposure_s") == [1.0, 2.0]
    np.testing.assert_array_equal(
        rates(derived, "det_image"), [counts[0], (counts[1] + counts[2]) / 2]
    )


def test_without_an_exposure_the_run_goes_on_and_the_derived_run_says_why(RE, raw, build, logged):
    _, derived = build()
    RE(bp.count([PlainImage(func=poisson(), name="det")], 3))
    assert_emitted(raw.by_name, start=1, descriptor=1, event=3, stop=1)
    assert_emitted(derived.by_name, start=1, stop=1)
    stop = derived.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert stop["num_events"] == {}
    assert re.search(
        r"No exposure time for 'det' in stream 'primary': looked for det\*acquire_time, .*"
        r"\(there are none\)\. Set `exposure_s`, or name the key in `exposure_keys`\.",
        stop["reason"],
    )
    assert "goes on undenoised: No exposure time for 'det'" in logged()


def test_frames_whose_columns_tiled_would_refuse_are_told_before_the_first(RE, raw, build):
    name = "saxs_pilatus_2m_of_the_downstream_station_bl9"
    det = Camera(name=name, func=poisson())
    _, derived = build(tiled_uri="http://127.0.0.1:9", exposure_s=1.0)
    RE(bp.count([det], 1))
    (stop,) = derived.by_name["stop"]
    assert re.search(
        rf"'{name}_image' has 51 bytes; expected at most 45, .*`data_keys`", stop["reason"]
    )
    _, derived = build(tiled_uri="http://127.0.0.1:9", exposure_s=1.0, data_keys=[name])
    _, without_tiled = build(exposure_s=1.0)
    RE(bp.count([det], 1))
    assert values(derived, "denoise_ok") == values(without_tiled, "denoise_ok") == [True]


def test_a_derived_descriptor_is_no_later_than_its_events(RE, build, counts):
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)
    _, derived = build()
    RE(bp.count([det], 2))
    (descriptor,) = derived.by_name["descriptor"]
    assert descriptor["time"] <= min(event["time"] for event in derived.by_name["event"])


@pytest.mark.parametrize("recorded", [False, True])
def test_an_exposure_that_is_scanned_is_taken_from_the_events_or_refused(
    RE, raw, build, counts, recorded
):
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)
    if recorded:
        det.cam.kind = det.cam.acquire_time.kind = "normal"
    _, derived = build(exposure_s=3.0)
    RE(bp.list_scan([det], det.cam.acquire_time, [0.5, 1.0, 2.0]))
    assert raw.by_name["stop"][0]["num_events"] == {"primary": 3}
    if recorded:
        assert values(derived, "det_image_exposure_s") == [0.5, 1.0, 2.0]
    else:
        assert_emitted(derived.by_name, start=1, stop=1)
        assert re.search(
            r"exposure of 'det_image' in stream 'primary' is scanned \('det_cam_acquire_time' .*"
            r'`det\.cam\.acquire_time\.kind = "normal"`',
            derived.by_name["stop"][0]["reason"],
        )


# Masks


def test_masked_pixels_are_not_counted_and_not_a_number(RE, raw, build):
    mask = np.zeros(SHAPE, bool)
    mask[3:5, 7] = True
    func = poisson()
    _, derived = build(mask=mask)
    RE(bp.count([Camera(name="det", func=func)], 2))
    frames = rates(derived, "det_image")
    np.testing.assert_array_equal(np.isnan(frames), np.stack([mask, mask]))
    assert values(derived, "det_image_raw_total") == [f[~mask].sum() for f in func.taken[-2:]]
    assert values(derived, "det_image_denoised_total") == [
        2 * f[~mask].sum() for f in func.taken[-2:]
    ]


def test_a_mask_that_does_not_fit_is_told_when_the_run_starts(RE, raw, build):
    _, derived = build(mask=np.zeros((20, 16)))
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert_emitted(derived.by_name, start=1, stop=1)
    assert derived.by_name["stop"][0]["reason"] == (
        "The mask of 'det_image' has shape (20, 16), its frames (16, 20); they must agree. "
        "Set `mask` to one of the right shape."
    )


def test_each_detector_may_have_its_own_mask(RE, raw, build):
    mask = np.eye(16, dtype=bool)
    _, derived = build(mask={"b_image": mask})
    cameras = [Camera(name="a", func=poisson()), Camera(name="b", func=poisson(shape=(16, 16)))]
    RE(bp.count(cameras))
    assert not np.isnan(rates(derived, "a_image")).any()
    np.testing.assert_array_equal(np.isnan(rates(derived, "b_image")[0]), mask)


@pytest.mark.parametrize("name", ["det_image", "det"])
@pytest.mark.parametrize("data_keys", [None, ["det"]], ids=str)
def test_settings_may_call_frames_by_data_key_or_by_detector(
    RE, raw, build, logged, name, data_keys
):
    mask = np.zeros(SHAPE, bool)
    mask[:8] = True
    spot = ROI(rows=(9, 13), cols=(4, 12), background_px=0)
    _, derived = build(
        data_keys=data_keys,
        mask={name: mask},
        rois={name: {"spot": spot}},
        exposure_s={name: 2.0},
        frames_directory=None,
    )
    RE(bp.count([Camera(name="det", func=poisson(), exposure_s=np.nan)], 1))
    key = "det" if data_keys else "det_image"
    (rate,) = rates(derived, key)
    assert np.isnan(rate).sum() == mask.sum()
    assert values(derived, f"{key}_exposure_s") == [2.0]
    assert values(derived, "spot_intensity") == [pytest.approx(np.nansum(rate[9:13, 4:12]))]
    assert "has nothing for" not in logged()


@pytest.mark.parametrize(
    ("key", "told"),
    [("det_cam_acquire_tim", ", perhaps det_cam_acquire_time is meant"), ("shutter", "")],
)
def test_an_exposure_key_that_no_stream_has_is_told(RE, raw, build, logged, key, told):
    build(exposure_keys=[key], frames_directory=None)
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert f"have {key} of `exposure_keys`{told}; exposures are looked for without" in logged()
    assert logged().count("of `exposure_keys`") == 1


def test_an_exposure_key_that_is_there_is_not_told(RE, raw, build, logged):
    build(exposure_keys=["det_cam_acquire_time", "other"], frames_directory=None)
    RE(bp.count([Camera(name="det", func=poisson())], 1))
    assert "exposure_keys" not in logged()


def test_frames_that_the_settings_have_no_mask_for_are_told(RE, raw, build, logged):
    build(mask={"det_imag": np.zeros(SHAPE)}, frames_directory=None)
    RE(bp.count([Camera(name="det", func=poisson())], 1))
    assert "setting `mask` has nothing for det_image or det; it has det_imag" in logged()
    assert logged().count("has nothing for") == 1
