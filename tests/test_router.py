import logging
import re

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
import tifffile
from bluesky.utils import RunEngineInterrupted
from event_model import pack_event_page
from live_path import (
    SHAPE,
    Camera,
    PlainImage,
    UnchangedDocuments,
    by_stream,
    poisson,
    rates,
    settings,
    values,
)
from ophyd.sim import DirectImage, SynAxis, SynSignal, SynSignalWithRegistry
from ophyd_async.core import (
    StaticPathProvider,
    TriggerInfo,
    UUIDFilenameProvider,
    init_devices,
)
from ophyd_async.sim import SimBlobDetector

from bluesky_denoise.errors import ModelNotFound, SettingsError
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
    assert_emitted,
    validate_documents,
)

EXPOSURE_S = 0.5


@pytest.fixture
def motor():
    return SynAxis(name="motor")


@pytest.fixture
def counts():
    return np.random.default_rng(1).poisson(5, (12, *SHAPE)).astype(np.uint16)


@pytest.fixture
def build(RE, raw, tmp_path):
    """Subscribe a router to the RunEngine; return it, and what it emits."""
    unchanged = UnchangedDocuments()
    RE.subscribe(unchanged)
    outputs = []

    def build(denoiser=None, **values):
        values = {"frames_directory": tmp_path / "denoised", **values}
        router = DenoiseRouter(settings(**values), denoiser or UnitDenoiser())
        derived = DocumentCollector()
        router.subscribe(derived)
        RE.subscribe(router)
        outputs.append(derived)
        return router, derived

    yield build
    unchanged.check()
    raw.validate()
    for derived in outputs:
        if derived.documents:
            derived.validate()


def path_provider(directory):
    return StaticPathProvider(UUIDFilenameProvider(), directory)


# The three ways of carrying frames


@pytest.mark.parametrize("files", [True, False], ids=["in files", "in events"])
def test_the_three_ways_of_carrying_frames_give_equal_rates(
    RE, raw, build, motor, counts, tmp_path, files
):
    _, derived = build(**({} if files else {"frames_directory": None}))
    inline = ReplayDetector(name="inline", frames=ReplayFrames(counts, 0.5), exposure_s=0.5)
    ad = AreaDetectorReplay(
        name="ad", frames=ReplayFrames(counts, 0.5), exposure_s=0.5, directory=tmp_path
    )
    with init_devices():
        flown = AsyncReplayDetector(
            path_provider(tmp_path), ReplayFrames(counts, 0.5), exposure_s=0.5
        )
    for det, key in ((inline, "inline_image"), (ad, "ad_image"), (flown, "flown")):
        derived.clear()
        (uid,) = RE(bp.scan([det], motor, -1, 1, 4))
        expected = counts[:4] / np.float32(0.5)
        np.testing.assert_array_equal(rates(derived, key).reshape(4, *SHAPE), expected)
        assert derived.by_name["start"][0]["original_run_uid"] == uid
        assert values(derived, "motor") == pytest.approx([-1, -1 / 3, 1 / 3, 1])
        assert values(derived, f"{key}_raw_total") == [f.sum() for f in counts[:4]]
        assert values(derived, f"{key}_exposure_s") == [0.5] * 4
        assert values(derived, "raw_seq_num") == [1, 2, 3, 4]
        assert values(derived, "denoise_reason") == [""] * 4
        derived.validate()


@pytest.mark.parametrize("num", [1, 2])
def test_one_or_two_frames_per_event_stay_together(RE, raw, build, counts, tmp_path, num):
    _, derived = build()
    ad = AreaDetectorReplay(
        name="ad", frames=ReplayFrames(counts, 1.0), directory=tmp_path, num_images=num
    )
    RE(bp.count([ad], 3))
    expected = counts[: 3 * num].reshape(3, num, *SHAPE)
    np.testing.assert_array_equal(rates(derived, "ad_image"), expected)
    assert derived.by_name["descriptor"][0]["data_keys"]["ad_image"]["shape"] == [num, *SHAPE]


def test_two_frames_per_event_inside_the_events(RE, raw, build):
    _, derived = build(exposure_s=2.0)
    func = poisson(shape=(2, *SHAPE))
    RE(bp.count([PlainImage(func=func, name="det")], 3))
    np.testing.assert_array_equal(rates(derived, "det"), np.stack(func.taken[-3:]) / 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda func, path: DirectImage(func=func, name="direct"),
        lambda func, path: PlainImage(func=func, name="direct_img"),
        lambda func, path: SynSignal(func=func, name="direct_img"),
        lambda func, path: SynSignalWithRegistry(func=func, name="direct_img", save_path=str(path)),
    ],
    ids=["DirectImage", "SynSignal without configuration", "SynSignal", "NPY_SEQ files"],
)
def test_detectors_of_ophyd_sim_are_denoised(RE, raw, build, tmp_path, make):
    _, derived = build(exposure_s=0.5)
    func = poisson()
    RE(bp.count([make(func, tmp_path)], 3))
    np.testing.assert_array_equal(rates(derived, "direct_img"), np.stack(func.taken[-3:]) * 2)


def test_a_series_of_tiff_files_is_denoised(RE, raw, build, tmp_path):
    class TiffSeries(SynSignalWithRegistry):
        """Files as the TIFF plugin of areaDetector names them."""

        def stage(self):
            super().stage()
            self._asset_docs_cache[-1][1].update(
                resource_path=f"{self._file_stem}",
                resource_kwargs={"template": "_{:d}.tif", "frame_per_point": 1},
            )

    _, derived = build(exposure_s=0.5)
    func = poisson()
    det = TiffSeries(
        func=func,
        name="det",
        save_path=str(tmp_path),
        save_func=tifffile.imwrite,
        save_spec="AD_TIFF",
        save_ext="tif",
    )
    RE(bp.count([det], 3))
    assert values(derived, "denoise_reason") == [""] * 3
    np.testing.assert_array_equal(
        rates(derived, "det").reshape(3, *SHAPE), np.stack(func.taken[-3:]) * 2
    )


def test_a_detector_of_ophyd_async_is_denoised_in_a_step_scan(RE, raw, build, motor, tmp_path):
    _, derived = build(exposure_s=0.5)
    with init_devices():
        det = SimBlobDetector(path_provider(tmp_path))
    RE(bp.scan([det], motor, -1, 1, 3))
    assert rates(derived, "det").shape == (3, 1, 240, 320)
    assert values(derived, "denoise_ok") == [True] * 3
    assert min(values(derived, "det_raw_total")) > 0
    assert_emitted(
        derived.by_name,
        **{"start": 1, "descriptor": 1, "stream_resource": 1, "stream_datum": 3},
        **{"event": 3, "stop": 1},
    )


def test_a_fly_scan_without_events_is_denoised_frame_by_frame(RE, raw, build, counts, tmp_path):
    _, derived = build(streams=["main"])
    with init_devices():
        det = AsyncReplayDetector(path_provider(tmp_path), ReplayFrames(counts, 0.5))

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def fly():
        yield from bps.prepare(det, TriggerInfo(number_of_events=5, livetime=0.5), wait=True)
        yield from bps.declare_stream(det, name="main")
        yield from bps.kickoff(det, wait=True)
        yield from bps.complete(det, group="done", wait=False)
        done = False
        while not done:
            try:
                yield from bps.wait(group="done", timeout=0.05)
                done = True
            except TimeoutError:
                pass
            yield from bps.collect(det, return_payload=False, name="main")

    RE(fly())
    assert "event" not in raw.by_name
    np.testing.assert_array_equal(
        rates(derived, "det", "denoised_main"), counts[:5, None] / np.float32(0.5)
    )
    assert values(derived, "raw_seq_num", "denoised_main") == [1, 2, 3, 4, 5]
    assert derived.by_name["stop"][0]["num_events"] == {"denoised_main": 5}


def test_event_pages_are_taken_as_events(RE, raw, build):
    func = poisson()
    RE(bp.count([Camera(name="det", func=func)], 4))
    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    start, descriptor = raw.by_name["start"][0], raw.by_name["descriptor"][0]
    page = pack_event_page(*raw.by_name["event"])
    for name, doc in (
        ("start", start),
        ("descriptor", descriptor),
        ("event_page", page),
        ("stop", raw.by_name["stop"][0]),
    ):
        router(name, doc)
    derived.validate()
    np.testing.assert_array_equal(rates(derived, "det_image"), np.stack(func.taken[-4:]) * 2)


def test_events_that_come_at_once_are_denoised_as_batches(RE, raw, build):
    RE(bp.count([Camera(name="det", func=poisson())], 10))
    denoiser = UnitDenoiser()
    router = DenoiseRouter(settings(batch_size=4), denoiser)
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents)
    assert denoiser.calls == [4, 4, 2]
    assert values(derived, "raw_seq_num") == list(range(1, 11))
    derived.validate()


def test_each_of_two_detectors_has_batches_of_its_own(RE, raw, build):
    RE(bp.count([Camera(name=name, func=poisson()) for name in ("a", "b")], 6))
    denoiser = UnitDenoiser()
    router = DenoiseRouter(settings(batch_size=4), denoiser)
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents)
    assert denoiser.calls == [4, 4, 2, 2]
    for name in ("a", "b"):
        expected = [e["data"][f"{name}_image"] * 2 for e in raw.by_name["event"]]
        np.testing.assert_array_equal(rates(derived, f"{name}_image"), expected)


# Standard errors


@pytest.mark.parametrize("files", [True, False], ids=["in files", "in events"])
def test_standard_errors_lie_beside_the_frames_if_they_are_asked_for(RE, raw, build, files):
    mask = np.zeros(SHAPE, bool)
    mask[3:5, 7] = True
    func = poisson()
    options = {} if files else {"frames_directory": None}
    _, derived = build(save_sigma=True, mask=mask, **options)
    RE(bp.count([Camera(name="det", func=func)], 3))
    counts = np.where(mask, np.nan, np.stack(func.taken[-3:]))
    np.testing.assert_allclose(rates(derived, "det_image"), counts * 2, rtol=1e-6)
    np.testing.assert_allclose(rates(derived, "det_image_sigma"), np.sqrt(counts) * 2, rtol=1e-6)
    keys = derived.by_name["descriptor"][0]["data_keys"]
    assert keys["det_image_sigma"] == keys["det_image"]
    owners = derived.by_name["descriptor"][0]["object_keys"]
    assert "det_image_sigma" in owners["denoiser"]
    if files:
        resources = derived.by_name["stream_resource"]
        assert len({r["uri"] for r in resources}) == 1
        assert [r["data_key"] for r in resources] == ["det_image", "det_image_sigma"]


def test_without_being_asked_for_no_standard_errors_are_saved(RE, raw, build):
    _, derived = build()
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert "det_image_sigma" not in derived.by_name["descriptor"][0]["data_keys"]


def test_standard_errors_of_a_frame_that_was_not_denoised_are_not_a_number(RE, raw, build):
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    router, derived = build(save_sigma=True)
    for name, doc in raw.documents:
        router.accept(name, doc, skipped="late" if doc.get("seq_num") == 1 else "")
    frames = rates(derived, "det_image_sigma")
    assert np.isnan(frames[0]).all()
    assert np.isfinite(frames[1]).all()


def test_a_denoiser_that_gives_no_standard_errors_is_refused_if_they_are_asked_for():
    denoiser = UnitDenoiser(has_sigma=False)
    DenoiseRouter(settings(), denoiser)
    with pytest.raises(SettingsError, match="`save_sigma`: the denoiser 'unit' gives no standard"):
        DenoiseRouter(settings(save_sigma=True), denoiser)


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


def test_a_key_that_is_not_in_the_run_is_warned_of_with_those_there_are(RE, raw, build, logged):
    _, derived = build(data_keys=["nothing"])
    RE(bp.scan([Camera(name="det", func=poisson())], SynAxis(name="motor"), 0, 1, 2))
    assert not derived.documents
    assert re.search(
        r"stream primary has none of the data keys or detectors nothing, which the settings name; "
        r"it has .*motor.*\. Frames are in det_image$",
        logged(),
        re.MULTILINE,
    )


def test_a_key_without_frames_that_is_asked_for_is_told(RE, raw, build, motor):
    _, derived = build(data_keys=["motor"])
    RE(bp.scan([Camera(name="det", func=poisson())], motor, 0, 1, 2))
    assert (
        "Data key 'motor' has shape []; expected frames (H, W)."
        in (derived.by_name["stop"][0]["reason"])
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


# What goes wrong


class AnyShape(PlainImage):
    """A camera whose frames may be of any size."""

    def describe(self):
        described = super().describe()
        described[self.name]["shape"] = [None, None]
        return described


@pytest.mark.parametrize("files", [True, False], ids=["in files", "in events"])
def test_a_frame_whose_shape_changes_is_told_and_the_others_are_denoised(RE, raw, build, files):
    _, derived = build(exposure_s=1.0, **({} if files else {"frames_directory": None}))
    det = AnyShape(name="det", func=lambda: np.zeros(SHAPE))
    shapes = iter([SHAPE, (18, 24), SHAPE, (20, 16)])
    det.sim_set_func(lambda: np.full(next(shapes), 3, np.uint32))
    RE(bp.count([det], 4))
    assert values(derived, "denoise_ok") == [True, False, True, False]
    assert [values(derived, "denoise_reason")[i] for i in (1, 3)] == [
        "'det' has shape (1, 18, 24); the first frames of this run had (16, 20)",
        "'det' has shape (1, 20, 16); the first frames of this run had (16, 20)",
    ]
    assert [np.nanmean(f) for f in rates(derived, "det")[::2]] == [3, 3]
    assert np.isnan(rates(derived, "det")[1::2]).all()
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 4}


def test_skipped_events_are_recorded_and_counted(RE, raw, build, logged):
    RE(bp.count([Camera(name="det", func=poisson())], 4))
    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for name, doc in raw.documents:
        router.accept(name, doc, skipped="no time" if doc.get("seq_num") in (2, 3) else "")
    router.flush()
    derived.validate()
    assert values(derived, "denoise_ok") == [True, False, False, True]
    assert values(derived, "denoise_reason")[1] == "no time"
    assert np.isnan(rates(derived, "det_image")[1:3]).all()
    assert "2 events were skipped" in logged()


@pytest.mark.parametrize("first", [True, False])
def test_events_skipped_before_anything_is_known_of_their_frames(RE, raw, build, first):
    """The shape is the declared one, so that the frames that follow fit."""
    RE(bp.count([Camera(name="det", func=poisson())], 3))
    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for name, doc in raw.documents:
        skipped = "no time" if name == "event" and (doc["seq_num"] == 1 or not first) else ""
        data = {"data": {"det_image": None}} if skipped else {}
        router.accept(name, {**doc, **data}, skipped=skipped)
        router.flush()
    derived.validate()
    assert values(derived, "denoise_ok") == [False, first, first]
    assert rates(derived, "det_image").shape == (3, *SHAPE)


def test_an_aborted_scan_is_denoised_as_far_as_it_went(RE, raw, build, motor):
    _, derived = build()
    det = Camera(name="det", func=poisson())

    def plan():
        yield from bps.open_run()
        for _ in range(3):
            yield from bps.trigger_and_read([det])
        yield from bps.pause()

    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    RE.abort("the beam is gone")
    assert raw.by_name["stop"][0]["exit_status"] == "abort"
    stop = derived.by_name["stop"][0]
    assert (stop["exit_status"], stop["reason"]) == ("abort", "the beam is gone")
    assert stop["num_events"] == {"denoised": 3}
    assert values(derived, "denoise_ok") == [True] * 3


def test_a_failed_plan_gives_a_failed_derived_run_with_its_reason(RE, raw, build):
    _, derived = build()

    def plan():
        yield from bps.open_run()
        yield from bps.trigger_and_read([Camera(name="det", func=poisson())])
        raise RuntimeError("no more liquid nitrogen")

    with pytest.raises(RuntimeError, match="nitrogen"):
        RE(plan())
    stop = derived.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert "no more liquid nitrogen" in stop["reason"]


def test_files_that_never_come_are_told_in_each_event(RE, raw, build, tmp_path):
    _, derived = build(exposure_s=1.0, read_timeout_s=0.2)
    det = SynSignalWithRegistry(
        func=poisson(), name="det", save_path=str(tmp_path), save_func=lambda path, array: None
    )
    RE(bp.count([det], 3))
    assert values(derived, "denoise_ok") == [False] * 3
    reasons = values(derived, "denoise_reason")
    assert all(
        re.match(rf"det: frame {i} is not readable: .*_{i}\.npy", r) for i, r in enumerate(reasons)
    )
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 3}


def test_an_event_whose_datum_never_came_is_told(RE, raw, build, tmp_path):
    det = SynSignalWithRegistry(func=poisson(), name="det", save_path=str(tmp_path))
    RE(bp.count([det], 2))
    router = DenoiseRouter(settings(exposure_s=1.0), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    missing = raw.by_name["datum"][1]["datum_id"]
    router.feed([(n, d) for n, d in raw.documents if d.get("datum_id") != missing])
    derived.validate()
    assert values(derived, "denoise_ok") == [True, False]
    assert values(derived, "denoise_reason")[1] == "no frames came for det"
    assert derived.by_name["stop"][0]["exit_status"] == "fail"
    assert "Datum document is missing" in derived.by_name["stop"][0]["reason"]


def test_a_batch_that_fails_is_tried_frame_by_frame(RE, raw, build):
    class Picky(UnitDenoiser):
        def denoise(self, counts, exposure_s, mask=None):
            if (counts[:, 0, 0] == 99).any():
                raise ValueError("99 is not for me")
            return super().denoise(counts, exposure_s, mask)

    frames = iter([np.full(SHAPE, n, np.uint32) for n in (0, 1, 99, 3)])
    RE(bp.count([Camera(name="det", func=lambda: next(frames))], 4))
    router = DenoiseRouter(settings(), Picky())
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents)
    derived.validate()
    assert values(derived, "denoise_ok") == [True, True, False, True]
    assert values(derived, "denoise_reason")[2] == "det_image: ValueError: 99 is not for me"


def test_the_exception_of_a_subscriber_reaches_neither_the_run_nor_other_subscribers(
    RE, raw, tmp_path, caplog
):
    def broken(name, doc):
        raise RuntimeError("I am broken")

    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(broken)
    router.subscribe(derived)
    RE.subscribe(router)
    with caplog.at_level(logging.ERROR, logger="bluesky_denoise"):
        RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert_emitted(derived.by_name, start=1, descriptor=1, event=2, stop=1)
    failures = [r for r in caplog.records if "A subscriber of the denoised docu" in r.message]
    assert len(failures) == 5
    assert "I am broken" in str(failures[0].exc_info[1])


def test_an_unsubscribed_function_is_called_no_more(RE, raw, build):
    router, _ = build()
    other = DocumentCollector()
    token = router.subscribe(other, "event")
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert_emitted(other.by_name, event=2)
    router.unsubscribe(token)
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    assert_emitted(other.by_name, event=2)


def test_documents_that_belong_to_no_run_change_nothing(caplog):
    router, derived = DenoiseRouter(settings(), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    router("event", {"descriptor": "unknown", "data": {}, "seq_num": 1, "uid": "u", "time": 0.0})
    router("stop", {"run_start": "unknown", "uid": "u"})
    router("bulk_events", {})
    assert not derived.documents
    assert not caplog.records


def test_a_router_that_is_closed_ends_its_open_runs(RE, raw, build):
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents[:-1])
    router.close()
    derived.validate()
    stop = derived.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert stop["reason"] == "the denoiser was closed during the run"
    assert stop["num_events"] == {"denoised": 2}


@pytest.mark.parametrize("model", ["nowhere.module:Denoiser", "bluesky_denoise.testing:Nobody"])
def test_a_factory_that_is_not_there_is_named(model):
    with pytest.raises(ModelNotFound, match=rf"Setting `model`, '{model}'"):
        DenoiseRouter(settings(model=model))


def test_validating_helpers_would_see_a_lost_event(RE, raw, build):
    _, derived = build(frames_directory=None)
    RE(bp.count([Camera(name="det", func=poisson())], 3))
    lost = [item for item in derived.documents if item != ("event", by_stream(derived)[1])]
    with pytest.raises(AssertionError, match="seq_num 3; expected 2"):
        validate_documents(lost)
