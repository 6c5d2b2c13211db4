"""Raw sums in place of results that do not come in time."""

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from derived_by_hand import KEY, Derived, signals_of
from event_model import pack_datum_page, pack_event_page
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.plans import denoised_count
from bluesky_denoise.raw_sums import RawSums
from bluesky_denoise.roi import ROI
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.simulation.scenes import Peak, gaussian_peak

SPOT = ROI(rows=(16, 32), cols=(14, 30), background_px=4)


@pytest.mark.parametrize("kind", ["inline", "files", "async files"])
def test_a_deadline_can_be_raw_sums_with_the_flag_down(RE, raw, tmp_path, kind):
    # A frame of nothing, less a slope, would show a peak.
    rate = np.mgrid[:48, :48][0] + gaussian_peak((48, 48), Peak(20.0, 20.0, 3000.0, 1.8, 1.8))
    counts = np.random.default_rng(0).poisson(rate, (3, 48, 48)).astype(np.uint32)
    frames = ReplayFrames(counts, 1.0)
    key = "det" if kind == "async files" else KEY
    if kind == "inline":
        det = ReplayDetector(name="det", frames=frames)
    elif kind == "files":
        det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)
    else:
        with init_devices():
            provider = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
            det = AsyncReplayDetector(provider, frames, exposure_s=1.0, name="det")
    mask = np.zeros((48, 48), bool)
    mask[20, 20] = True
    settings = DenoiseSettings(data_keys=[key], rois={"spot": SPOT}, mask=mask)
    silent = Derived()
    signals = DenoisedSignals(silent, settings=settings, timeout_s=0.05, on_timeout="raw",
                              data_keys=[key], rois=["spot"])  # fmt: skip
    RE.subscribe(signals.raw)
    RE(denoised_count([det], 3, denoised=signals))
    events = [e["data"] for e in raw.by_name["event"] if "denoised_spot_raw_sum" in e["data"]]
    assert [e["denoised_raw_seq_num"] for e in events] == [1, 2, 3]
    region, wider = (np.zeros((48, 48), bool) for _ in range(2))
    region[16:32, 14:30] = True
    wider[12:36, 10:34] = True  # 4 pixels of frame
    places = np.stack([np.ones((48, 48)), *np.mgrid[:48, :48]], -1)  # a plane's
    around, counted = wider & ~region, region & ~mask
    for event, frame in zip(events, counts, strict=True):
        inside = frame[counted].sum()
        plane = np.linalg.lstsq(places[around], frame[around].astype(float))[0]
        background = (places[counted] @ plane).sum()
        # Nearly that of their mean: the one masked pixel is all that is uneven.
        error = np.sqrt(inside + frame[around].sum() * (counted.sum() / around.sum()) ** 2)
        assert event["denoised_spot_raw_sum"] == inside
        assert event["denoised_spot_intensity"] == pytest.approx(inside - background)
        assert event["denoised_spot_intensity_error"] == pytest.approx(error, rel=1e-3)
        assert np.isnan(event["denoised_spot_denoised_sum"])
        assert np.isnan(event["denoised_spot_center_row"])
        assert np.isnan(event[f"denoised_{key}_denoised_total"])
        assert event[f"denoised_{key}_raw_total"] == frame[~mask].sum()
        assert event["denoised_denoise_ok"] is False
        assert "not denoised within" in event["denoised_denoise_reason"]


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("kwargs", ["point_number", "frame"])
def test_raw_sums_are_of_the_last_frame_however_datums_are_counted(
    RE, raw, tmp_path, kwargs, paged
):
    counts = np.random.default_rng(0).poisson(3.0, (4, 48, 48)).astype(np.uint32)
    frames = ReplayFrames(counts, 1.0)
    RE(bp.count([AreaDetectorReplay(name="det", frames=frames, directory=tmp_path)], 4))
    sums, found = RawSums(DenoiseSettings(read_timeout_s=1)), []
    for name, doc in raw.documents:
        if name == "datum":  # as other kinds of files count
            number = doc["datum_kwargs"]["point_number"]
            doc = {**doc, "datum_kwargs": {kwargs: number}}
            name, doc = ("datum_page", pack_datum_page(doc)) if paged else (name, doc)
        sums(name, doc)
        if name == "event":
            found.append((sums.measure()["raw_seq_num"], sums.measure()["det_image_raw_total"]))
    assert found == [(i + 1, frame.sum()) for i, frame in enumerate(counts)]


def test_raw_sums_are_of_the_run_whose_event_came_last(RE):
    counts = np.random.default_rng(0).poisson(3.0, (4, 48, 48)).astype(np.uint32)
    det = ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))
    sums, found = RawSums(DenoiseSettings(read_timeout_s=1)), []

    def expose(run):
        yield from bpp.set_run_key_wrapper(bps.trigger_and_read([det]), run)
        found.append(sums.measure()["det_image_raw_total"])

    @bpp.stage_decorator([det])
    def plan():
        for run in ("outer", "inner"):
            yield from bpp.set_run_key_wrapper(bps.open_run(), run)
            yield from expose(run)
        yield from expose("outer")
        yield from bpp.set_run_key_wrapper(bps.close_run(), "inner")
        yield from expose("outer")
        yield from bpp.set_run_key_wrapper(bps.close_run(), "outer")

    RE.subscribe(sums)
    RE(plan())
    assert found == [frame.sum() for frame in counts]
    assert sums.measure() == {}


def test_raw_sums_of_a_page_are_of_its_last_event(RE, raw):
    counts = np.random.default_rng(0).poisson(3.0, (3, 48, 48)).astype(np.uint32)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))], 3))
    sums = RawSums(DenoiseSettings())
    events = [doc for name, doc in raw.documents if name == "event"]
    for name, doc in raw.documents:
        if name in ("start", "descriptor"):
            sums(name, doc)
    sums("event_page", pack_event_page(*events))
    assert sums.value.seq_num == 3
    assert sums.measure()["det_image_raw_total"] == counts[2].sum()


def test_events_of_a_stream_without_frames_leave_raw_sums_as_they_are(RE, raw):
    counts = np.random.default_rng(0).poisson(3.0, (1, 48, 48)).astype(np.uint32)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))], 1))
    sums = RawSums(DenoiseSettings())
    (run,) = raw.by_name["start"]
    (event,) = raw.by_name["event"]
    spec = {"dtype": "number", "shape": [], "source": "sim"}
    monitor = {"uid": "m", "run_start": run["uid"], "name": "ring", "data_keys": {"ring": spec}}
    for name, doc in raw.documents[:-1]:
        sums(name, doc)
    sums("descriptor", monitor)
    sums("event", {**event, "descriptor": "m", "data": {"ring": 3.0}})
    assert sums.measure()["det_image_raw_total"] == counts.sum()


def test_a_frame_of_flags_alone_has_no_numbers_and_ended_runs_are_forgotten(RE, raw):
    flags = np.full((48, 48), 2**32 - 1, np.uint32)
    det = ReplayDetector(name="det", frames=ReplayFrames(0 * flags[None], 1.0))
    sums = RawSums(DenoiseSettings())
    for _ in range(2):
        raw.documents.clear()
        RE(bp.count([det], 1))
        for name, doc in raw.documents[:-1]:
            sums(name, {**doc, "data": {KEY: flags}} if name == "event" else doc)
        assert sums.value.seq_num == 1
        assert sums.measure() == {}
        sums(*raw.documents[-1])
    assert len(sums._once) == 2  # start and descriptor of the last


def test_raw_sums_of_a_later_frame_are_not_given_for_the_one_that_was_waited_for(RE, raw):
    counts = np.random.default_rng(0).poisson(3.0, (2, 48, 48)).astype(np.uint32)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))], 2))
    signals = signals_of(Derived(), settings=DenoiseSettings(data_keys=[KEY]), on_timeout="raw")
    for name, doc in raw.documents[:-1]:
        signals.raw(name, doc)
        if doc.get("seq_num") == 1:
            status = signals.trigger()
    (timer,) = (item[2] for item in signals._waiting)
    timer.cancel()
    timer.function(*timer.args)
    status.wait(1)
    assert signals.raw_seq_num.get() == 1
    assert np.isnan(signals.det_image_raw_total.get())
    assert signals.denoise_ok.get() is False


def test_raw_sums_need_the_settings_of_the_denoiser():
    with pytest.raises(SettingsError, match="give DenoisedSignals its `settings`"):
        signals_of(Derived(), on_timeout="raw")
