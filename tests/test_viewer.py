import bluesky.plan_stubs as bps
import bluesky.plans as bp
import matplotlib as mpl
import numpy as np
import pytest
from beamline import KEY, ROIS, detector, paused_after
from bluesky.utils import RunEngineInterrupted
from live_path import settings, wait_for
from ophyd.sim import SynAxis

from bluesky_denoise.errors import SettingsError
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.viewer import FrameViewer


@pytest.fixture(autouse=True)
def _no_window():
    mpl.use("Agg")


@pytest.mark.parametrize("files", [False, True])
def test_the_view_has_raw_denoised_residual_and_trace(RE, tmp_path, files):
    motor = SynAxis(name="motor")
    directory, key = (tmp_path / "denoised", "det") if files else (None, KEY)
    router = DenoiseRouter(
        settings(data_keys=[key], rois=ROIS, frames_directory=directory), UnitDenoiser()
    )
    if files:
        counts = np.random.default_rng(0).poisson(5, (5, 48, 48)).astype(np.uint16)
        frames = ReplayFrames(counts, 1.0)
        det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path / "raw")
    else:
        det = detector(motor)
    picture = tmp_path / "live.png"
    viewer = FrameViewer(key, roi="satellite", interval_s=0.01, save_to=picture)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.scan([det], motor, -1, 1, 5))
    viewer.close()
    assert viewer.drawn >= 1
    images = [axes.images[0].get_array() for axes in viewer.figure.axes if axes.images]
    assert len(images) == 3
    np.testing.assert_allclose(images[0], images[1], rtol=1e-6)  # a unit denoiser
    assert np.abs(images[2]).max() < 1e-3
    trace = next(axes for axes in viewer.figure.axes if axes.get_xlabel() == "motor")
    assert "satellite_intensity" in trace.get_ylabel()
    assert list(trace.lines[0].get_xdata()) == [-1, -0.5, 0, 0.5, 1]
    box = viewer.figure.axes[0].patches[0].get_bbox()
    assert (box.y0, box.y1, box.x0, box.x1) == (14.5, 31.5, 15.5, 33.5)  # ROIS
    assert picture.stat().st_size > 10_000


def test_a_point_that_is_taken_again_is_traced_once(RE):
    motor = SynAxis(name="motor")
    router = DenoiseRouter(settings(data_keys=[KEY], rois=ROIS), UnitDenoiser())
    viewer = FrameViewer(KEY, roi="satellite", interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    with pytest.raises(RunEngineInterrupted):
        RE(paused_after(bp.scan([detector(motor)], motor, -1, 1, 5), 3))
    last = []
    router.subscribe(lambda name, doc: last.append(doc["data"]) if name == "event" else None)
    RE.resume()
    viewer.close()
    trace = next(axes for axes in viewer.figure.axes if axes.get_xlabel() == "motor")
    assert list(trace.lines[0].get_xdata()) == [-1, -0.5, 0, 0.5, 1]
    assert last[0]["raw_seq_num"] == 3
    assert trace.lines[0].get_ydata()[2] == last[0]["satellite_intensity"]


def test_a_roi_that_there_is_not_is_told(RE, logged):
    router = DenoiseRouter(settings(data_keys=[KEY], rois=ROIS), UnitDenoiser())
    RE.subscribe(router)
    viewer = FrameViewer(KEY, roi="satelite", interval_s=60.0)
    with pytest.raises(SettingsError, match="trace ROI 'satelite'; the denoiser has satellite"):
        viewer.attach(RE, router)
    router.subscribe(viewer.derived)  # as from another machine, without its settings
    RE(bp.count([detector()]))
    viewer.close()
    assert "is to trace satelite_intensity, which the stream denoised does not have" in logged()


def test_frames_that_come_faster_than_they_are_drawn_are_passed_over(RE):
    det, motor = detector(), SynAxis(name="motor")
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.scan([det], motor, -1, 1, 30))
    viewer.close()
    assert 1 <= viewer.drawn <= 2
    (line,) = [a.lines[0] for a in viewer.figure.axes if a.get_xlabel() == "motor"]
    assert len(line.get_xdata()) == 30


@pytest.mark.parametrize("files", [False, True])
def test_a_denoiser_that_is_behind_is_shown_with_the_raw_frames_of_its_own_points(
    RE, tmp_path, files, logged
):
    counts = np.random.default_rng(0).poisson(5, (6, 48, 48)).astype(np.uint16)
    frames, key = ReplayFrames(counts, 1.0), "det" if files else KEY
    det = ReplayDetector(name="det", frames=frames)
    if files:
        det = AreaDetectorReplay(name="det", frames=frames, directory=tmp_path / "raw")
    derived, later = [], []
    options = settings(data_keys=[key], frames_directory=tmp_path / "out" if files else None)
    router = DenoiseRouter(options, UnitDenoiser())
    router.subscribe(lambda *doc: derived.append(doc))
    viewer = FrameViewer(key, interval_s=60.0)
    RE.subscribe(viewer.raw)
    RE.subscribe(lambda *doc: later.append(doc))
    RE(bp.count([det], 3))
    RE(bp.count([det], 3))  # the next run is being taken already
    for name, doc in later:
        router(str(name), doc)
    stops = [i for i, (name, _) in enumerate(derived) if name == "stop"]
    for name, doc in derived[: stops[0]]:
        viewer.derived(name, doc)
    wait_for(lambda: "no longer, or not yet, at hand" in logged())
    assert viewer.drawn == 0
    shown = []
    for name, doc in derived[stops[0] + 1 :]:
        viewer.derived(name, doc)
        viewer.draw()
        if name == "event":
            shown.append(viewer.figure.axes[0].images[0].get_array())
    viewer.close()
    np.testing.assert_allclose(shown, counts[3:], rtol=1e-6)
    assert np.abs(viewer.figure.axes[4].images[0].get_array()).max() < 1e-3


def test_a_view_that_is_opened_in_the_middle_of_a_run_waits_for_the_next(RE, logged):
    viewer = FrameViewer(KEY, interval_s=60.0)
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    RE.subscribe(router)
    det = detector()

    def opened_between(detectors):
        yield from bps.one_shot(detectors)
        if not attached:
            viewer.attach(RE, router)
            attached.append(True)

    attached = []
    RE(bp.count([det], 3, per_shot=opened_between))
    viewer.draw()
    assert viewer.drawn == 0
    assert "cannot" not in logged()
    RE(bp.count([det], 3))
    viewer.close()
    assert viewer.drawn == 1


def test_a_run_that_cannot_be_followed_does_not_end_the_scan(RE, raw, logged):
    viewer = FrameViewer(KEY, interval_s=60.0)
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer.attach(RE, router)
    RE.subscribe(router)

    def broken(name, doc):
        if name == "event":
            raise RuntimeError("what is this")

    RE.subscribe(lambda name, doc: viewer._normalizer.subscribe(broken), "start")
    RE(bp.count([detector()], 3))
    viewer.close()
    assert len(raw.by_name["event"]) == 3
    assert logged().count("The live view cannot follow run") == 1


def test_standard_errors_are_shown_where_there_are_some(RE):
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    RE.subscribe(viewer.raw)

    def with_sigma(name, doc):
        if name == "event":
            doc = {**doc, "data": {**doc["data"], f"{KEY}_sigma": np.full((48, 48), 0.25)}}
        viewer.derived(name, doc)

    router.subscribe(with_sigma)
    RE.subscribe(router)
    RE(bp.count([detector()], 2))
    viewer.close()
    titles = [axes.get_title() for axes in viewer.figure.axes if axes.images]
    assert titles[1:] == ["denoised", "raw - denoised", "standard error"]
    assert viewer.figure.axes[6].images[0].get_array().max() == 0.25
    (trace,) = [axes for axes in viewer.figure.axes if axes.get_xlabel() == "point"]
    assert list(trace.lines[0].get_xdata()) == [1, 2]


def test_a_frame_that_cannot_be_drawn_is_logged_and_the_scan_goes_on(RE, logged, monkeypatch):
    def broken(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(FrameViewer, "_paint", broken)
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=0.01)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()], 3))
    wait_for(lambda: "could not be drawn" in logged())
    viewer.close()
