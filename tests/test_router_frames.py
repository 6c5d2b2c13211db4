"""Frames in all the ways in which documents carry them, and standard errors."""

import re

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import psutil
import pytest
import tifffile
from event_model import pack_event_page
from live_path import (
    SHAPE,
    Camera,
    PlainImage,
    paused_scan,
    poisson,
    rates,
    settings,
    values,
)
from ophyd.sim import DirectImage, SynSignal, SynSignalWithRegistry
from ophyd_async.core import (
    TriggerInfo,
    init_devices,
)
from ophyd_async.sim import SimBlobDetector
from router_fixtures import EXPOSURE_S, path_provider

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
    assert_emitted,
)

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


def test_no_raw_file_stays_open_after_its_run(RE, raw, build, counts, tmp_path):
    _, derived = build(frames_directory=None)
    det = AreaDetectorReplay(
        name="det", frames=ReplayFrames(counts, 0.5), exposure_s=0.5, directory=tmp_path
    )
    for _ in range(2):
        RE(bp.count([det], 2))
    assert values(derived, "denoise_ok") == [True] * 4
    assert [f.path for f in psutil.Process().open_files() if f.path.startswith(str(tmp_path))] == []


def test_a_detector_with_a_file_for_each_point_leaves_few_open(RE, raw, build, tmp_path):
    frames = np.random.default_rng(1).poisson(5, (40, *SHAPE)).astype(np.uint16)
    _, derived = build(frames_directory=None)
    det = AreaDetectorReplay(
        name="det", frames=ReplayFrames(frames, 0.5), exposure_s=0.5, directory=tmp_path
    )
    opened = []

    def count_open(name, doc):
        paths = {file.path for file in psutil.Process().open_files()}
        opened.append(sum(path.startswith(str(tmp_path)) for path in paths))

    RE.subscribe(count_open, "event")

    @bpp.run_decorator()
    def plan():
        for _ in range(len(frames)):
            yield from bps.stage(det)  # which begins a file
            yield from bps.trigger_and_read([det])
            yield from bps.unstage(det)

    RE(plan())
    assert len(list(tmp_path.glob("*.h5"))) == 40
    assert values(derived, "denoise_ok") == [True] * 40
    np.testing.assert_array_equal(rates(derived, "det_image").reshape(40, *SHAPE), frames / 0.5)
    assert max(opened) <= 1  # the one that is written


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


def test_flags_of_masked_pixels_are_no_counts_in_the_sum_of_frames(RE, raw, build):
    spot = ROI(rows=(4, 12), cols=(4, 14), background_px=2)
    flagged = np.random.default_rng(1).poisson(5, (3, 2, *SHAPE)).astype(np.uint32)
    flagged[..., 7, 8] = 2**32 - 1  # as an Eiger marks them
    frames = iter(flagged)
    _, derived = build(frames_directory=None, rois={"spot": spot})
    RE(bp.count([Camera(name="det", func=lambda: next(frames), exposure_s=0.5)], 3))
    inside = flagged[:, :, 4:12, 4:14].astype(float)
    inside[inside == 2**32 - 1] = 0
    np.testing.assert_allclose(values(derived, "spot_raw_sum"), inside.sum((1, 2, 3)) / 1.0)
    # Rates are means over the frames of an event.
    totals = np.reshape(rates(derived, "det_image"), flagged.shape).mean(1).sum((1, 2))
    np.testing.assert_allclose(values(derived, "det_image_denoised_total"), totals, rtol=1e-6)


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


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
@pytest.mark.parametrize("kind", ["inline", "files", "ophyd-async"])
def test_points_that_are_taken_again_after_a_pause_are_all_denoised(
    RE, raw, build, counts, tmp_path, kind, at_once
):
    frames = ReplayFrames(counts, EXPOSURE_S)
    if kind == "inline":
        det = ReplayDetector(name="det", frames=frames, exposure_s=EXPOSURE_S)
    elif kind == "files":
        det = AreaDetectorReplay(
            name="det", frames=frames, exposure_s=EXPOSURE_S, directory=tmp_path
        )
    else:
        with init_devices():
            det = AsyncReplayDetector(
                path_provider(tmp_path), frames, name="det", exposure_s=EXPOSURE_S
            )
    if at_once:
        paused_scan(RE, [det])
        router, derived = build(data_keys="det", exposure_s=EXPOSURE_S)
        router.feed(raw.documents)
    else:
        _, derived = build(data_keys="det", exposure_s=EXPOSURE_S)
        paused_scan(RE, [det])
    assert values(derived, "raw_seq_num") == [1, 2, 2, 3]
    assert values(derived, "denoise_reason") == [""] * 4
    expected = counts[:4] / np.float32(EXPOSURE_S)
    np.testing.assert_array_equal(rates(derived, "det").reshape(expected.shape), expected)
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 4}


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
    sigma, rtol = np.sqrt(counts) * 2, 2**-13 if files else 1e-6
    np.testing.assert_allclose(rates(derived, "det_image_sigma"), sigma, rtol=rtol)
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


OTHERS = {"motor": (), "mca": (2048,), "matrix": (3, 3)}
LEFT_OUT = {
    "colours": ((48, 40, 3), r"has shape \[48, 40, 3\], which is colours; .*ColorMode Mono"),
    "strip": ((1, 1280), r"has shape \[1, 1280\]; without `data_keys`, frames of 16 x 16"),
    "small": ((8, 8), r"has shape \[8, 8\]; without `data_keys`.*Name there all that is to be"),
}


@pytest.mark.parametrize("level", ["WARNING", "INFO"])
def test_images_that_are_left_out_are_told_once_in_a_run(RE, raw, build, caplog, level):
    build(streams=("primary", "dark"))
    caplog.set_level("INFO", "bluesky_denoise")
    shapes = OTHERS | {name: shape for name, (shape, _) in LEFT_OUT.items()}
    signals = [
        SynSignal(func=lambda shape=shape: np.ones(shape)[()], name=name)
        for name, shape in shapes.items()
    ]
    if level == "INFO":  # something is denoised
        signals.append(Camera(name="det", func=poisson()))

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read(signals, "primary")
        yield from bps.trigger_and_read(signals, "dark")

    RE(plan())
    told = [r for r in caplog.records if "data_keys`" in r.message or "colours;" in r.message]
    assert [record.levelname for record in told] == [level] * len(LEFT_OUT)
    for record, (name, (_, why)) in zip(told, LEFT_OUT.items(), strict=True):
        assert re.search(f"stream primary: Data key '{name}' {why}", record.message)


def test_an_image_that_is_left_out_is_denoised_where_it_is_named(RE, raw, build):
    _, derived = build(data_keys=["strip"], exposure_s=1.0)
    strip = SynSignal(func=lambda: np.full((1, 1280), 3), name="strip")
    RE(bp.count([strip], 1))
    np.testing.assert_array_equal(rates(derived, "strip"), np.full((1, 1, 1280), 3.0))
