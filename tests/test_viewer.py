import logging
import os

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from beamline import KEY, ROIS, detector, paused_after
from bluesky.utils import RunEngineInterrupted
from composed_runs import ComposedRun
from live_path import Camera, poisson, settings, wait_for
from matplotlib.backend_bases import CloseEvent
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


def assert_shows(axes, counts):
    """Check what is drawn: zero in the darkest colour, and only what is invalid in none."""
    (image,) = axes.images
    shown = image.get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~np.isfinite(counts))
    valid = np.isfinite(counts) & (counts > 0)
    np.testing.assert_allclose(shown[valid], counts[valid], rtol=1e-6)
    assert (shown[counts == 0] == image.norm.vmin).all()


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


@pytest.mark.parametrize("told", [True, False], ids=["point_number", "nothing"])
def test_a_frame_in_the_file_that_no_event_has_shifts_none_of_the_others(tmp_path, told):
    """As where the trigger of a point was repeated, or the file has dark frames as well."""
    run = ComposedRun(tmp_path, det=((16, 20), "FILESTORE:"))
    dark = run.begin("dark")
    frames = np.arange(1, 6)[:, None, None] * np.ones((16, 20), np.uint16)
    datum = run.old_file(run.file("raw.h5", frames))
    router = DenoiseRouter(settings(exposure_s=1.0), UnitDenoiser())
    viewer = FrameViewer("det", interval_s=60.0)
    router.subscribe(viewer.derived)
    shown = []
    for point in (0, 1, 2, 3, 4):
        datum_id = datum(**({"point_number": point} if told else {}))
        if point == 1 and told:
            continue  # no event has it
        run.event(dark if point == 1 else run.stream, det=datum_id)
        for name, doc in run.documents:
            viewer.raw(name, doc)
            router(name, doc)
        run.documents.clear()
        viewer.draw()
        axes = viewer.figure.axes[0]
        shown.append((axes.get_title().partition(",")[0], axes.images[0].get_array().max()))
    viewer.close()
    assert dict(shown) == {"point 1": 1, "point 2": 3, "point 3": 4, "point 4": 5}


def test_a_roi_that_there_is_not_is_told(RE, logged):
    router = DenoiseRouter(settings(data_keys=[KEY], rois=ROIS), UnitDenoiser())
    RE.subscribe(router)
    viewer = FrameViewer(KEY, roi="satelite", interval_s=60.0)
    assert repr(viewer) == f"FrameViewer(data_key={KEY!r}, roi='satelite')"
    with pytest.raises(SettingsError, match="trace ROI 'satelite'; the denoiser has satellite"):
        viewer.attach(RE, router)
    router.subscribe(viewer.derived)  # as from another machine, without its settings
    RE(bp.count([detector()]))
    viewer.close()
    assert "is to trace satelite_intensity, which the stream denoised does not have" in logged()


@pytest.mark.parametrize(("known", "shown"), [("det", KEY), (KEY, "det")])
def test_frames_that_there_are_not_are_told_once(RE, logged, known, shown):
    router = DenoiseRouter(settings(data_keys=[known]), UnitDenoiser())
    viewer = FrameViewer(shown, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()], 2))
    viewer.close()
    told = f"is to show {shown}, which the stream denoised does not have; it has det_"
    assert logged().count(told) == 1
    assert "cannot be shown" not in logged()
    assert "could not be drawn" not in logged()


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
            assert_shows(viewer.figure.axes[0], counts[3 + len(shown)])
            shown.append(name)
    viewer.close()
    assert len(shown) == 3
    assert np.abs(viewer.figure.axes[2].images[0].get_array()).max() < 1e-3


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
    assert viewer.figure.axes[3].images[0].get_array().max() == 0.25
    (trace,) = [axes for axes in viewer.figure.axes if axes.get_xlabel() == "point"]
    assert list(trace.lines[0].get_xdata()) == [1, 2]


def test_frames_of_a_detector_that_is_called_as_errors_are_not_shown_as_errors(RE):
    other = ReplayDetector(name="other", frames=ReplayFrames(np.ones((2, 48, 48), int), 1.0))
    other.image.name = f"{KEY}_sigma"
    router = DenoiseRouter(settings(), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector(), other], 2))
    viewer.close()
    titles = [axes.get_title() for axes in viewer.figure.axes if axes.images]
    assert titles[1:] == ["denoised", "raw - denoised"]


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


def test_each_peak_of_a_large_frame_can_be_seen_in_the_picture(RE, tmp_path):
    rng = np.random.default_rng(1)
    counts = np.full((1679, 1475), 1, np.uint32)
    peaks = rng.integers(20, 1450, (100, 2))
    for row, col in peaks:
        counts[row - 1 : row + 2, col - 1 : col + 2] = 10_000
    router = DenoiseRouter(settings(data_keys=[KEY], exposure_s=1.0), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0, save_to=tmp_path / "live.png")
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts[None], 1.0))]))
    viewer.close()
    pixels = plt.imread(tmp_path / "live.png")  # (H, W, RGBA), 0 to 1
    for axes in viewer.figure.axes[:2]:
        assert max(axes.images[0].get_array().shape) <= 600
        assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 1474.5), (1678.5, -0.5))
        for row, col in peaks:
            x, y = axes.transData.transform((col, row)).round().astype(int)
            y = len(pixels) - 1 - y
            near = pixels[y - 2 : y + 3, x - 2 : x + 3]
            assert ((near[..., 1] > 0.7) & (near[..., 2] < 0.5)).any()  # yellow, of viridis


class _FailsLater(UnitDenoiser):
    def denoise(self, *args, **kwargs):
        if self.calls:
            raise RuntimeError("CUDA out of memory, $1 is too much")
        return super().denoise(*args, **kwargs)


@pytest.mark.parametrize("files", [False, True])
def test_what_cannot_be_denoised_is_shown_raw_with_the_reason(RE, tmp_path, files):
    expose = poisson(shape=(48, 48))

    def with_gap():
        frame = expose()
        frame[20] = 2**32 - 1  # a gap between modules
        return frame

    directory = tmp_path / "denoised" if files else None
    router = DenoiseRouter(settings(data_keys=[KEY], frames_directory=directory), _FailsLater())
    viewer = FrameViewer(KEY, interval_s=60.0, save_to=tmp_path / "live.png")
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([Camera(name="det", func=with_gap)], 2))
    viewer.close()
    raw, denoised, residual, *bars = viewer.figure.axes[:4]
    assert raw.get_title() == "point 2, raw"
    assert bars[0].get_xlabel() == "counts"
    counts = expose.taken[-1].astype(float)
    counts[20] = np.nan
    assert_shows(raw, counts)
    assert denoised.images[0].get_array().mask.all()
    assert residual.images[0].get_array().mask.all()
    assert viewer.figure.get_suptitle() == (
        f"not denoised: {KEY}: RuntimeError: CUDA out of memory, $1 is too much"
    )


def test_frames_that_could_not_be_saved_are_shown_raw_with_the_reason(RE, tmp_path):
    options = settings(data_keys=[KEY], frames_directory=tmp_path / "denoised")
    (tmp_path / "denoised").write_text("no directory any more")
    router = DenoiseRouter(options, UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()]))
    viewer.close()
    assert viewer.figure.axes[0].get_title() == "point 1, raw, 0.1 s"
    assert viewer.figure.get_suptitle().startswith("not ok: the frames could not be saved in")


def test_a_denoised_frame_that_fails_the_audit_is_shown_as_not_ok(RE):
    denoiser = UnitDenoiser()
    denoiser.card = {"is": "audited"}
    options = settings(data_keys=[KEY], audit=True, rate_range=(1e6, 2e6))
    router = DenoiseRouter(options, denoiser)
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()]))
    viewer.close()
    assert viewer.figure.get_suptitle().startswith(f"not ok: audit of {KEY}: ")
    raw, denoised = (axes.images[0].get_array() for axes in viewer.figure.axes[:2])
    np.testing.assert_allclose(raw, denoised, rtol=1e-6)


def test_pixels_that_are_not_denoised_are_not_drawn_raw_either(RE):
    mask = np.zeros((48, 48), bool)
    mask[:, 20:23] = True
    counts = np.full((1, 48, 48), 5, np.uint32)
    counts[0, mask] = 2**31
    router = DenoiseRouter(settings(data_keys=[KEY], mask=mask), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0))]))
    viewer.close()
    np.testing.assert_array_equal(viewer.figure.axes[0].images[0].get_array().mask, mask)


class _Filter(SynAxis):
    """Moves to a number, and says the name of what is there."""

    def read(self):
        return {self.name: {"value": ["Al", "Cu", "Fe"][int(self.position)], "timestamp": 0.0}}

    def describe(self):
        return {self.name: {"source": "SIM", "dtype": "string", "shape": []}}


def test_a_motor_that_has_no_numbers_leaves_the_trace_against_the_point(RE, logged):
    router = DenoiseRouter(settings(data_keys=[KEY], rois=ROIS), UnitDenoiser())
    viewer = FrameViewer(KEY, roi="satellite", interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.list_scan([detector()], _Filter(name="filter"), [0, 1, 2]))
    viewer.close()
    assert "could not be drawn" not in logged()
    (trace,) = [axes for axes in viewer.figure.axes if axes.get_xlabel() == "point"]
    assert list(trace.lines[0].get_xdata()) == [1, 2, 3]


@pytest.mark.parametrize(
    ("frames", "rois"), [(KEY, "det"), ("det", KEY), (KEY, KEY), ("det", "det")]
)
def test_a_roi_is_marked_whatever_its_frames_are_called_in_the_settings(RE, frames, rois):
    router = DenoiseRouter(settings(data_keys=[frames], rois={rois: ROIS}), UnitDenoiser())
    viewer = FrameViewer(frames, roi="satellite", interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()]))
    viewer.close()
    assert len(viewer.figure.axes[0].patches) == 1


def test_who_reads_the_picture_while_it_is_written_reads_the_last_one(RE, tmp_path):
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0, save_to=tmp_path / "live")
    viewer.attach(RE, router)
    RE.subscribe(router)
    picture = tmp_path / "live.png"
    RE(bp.count([detector()]))
    wait_for(picture.exists)
    with picture.open("rb") as file:
        RE(bp.count([detector()]))
        viewer.close()
        assert file.read().endswith(b"IEND\xaeB`\x82")
        assert picture.stat().st_ino != os.fstat(file.fileno()).st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["live.png"]


def test_a_closed_view_takes_no_more_documents_and_keeps_no_frames(RE):
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()], 2))
    viewer.close()
    kept = viewer._raw, viewer._denoised
    assert [frames.is_there for frames in kept] == [False, False]
    drawn = viewer.drawn
    RE(bp.count([detector()], 2))
    viewer.close()
    assert [frames.is_there for frames in kept] == [False, False]
    assert viewer.drawn == drawn


@pytest.fixture
def _window():
    """Let there be a window, in a browser that nobody opens."""
    pytest.importorskip("tornado")
    mpl.use("webagg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("_window")
@pytest.mark.parametrize("saved", [False, True])
def test_a_window_is_painted_again_with_what_came_last(RE, tmp_path, monkeypatch, saved):
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0, save_to=tmp_path / "live.png" if saved else None)
    painted = []
    monkeypatch.setattr(viewer.figure.canvas, "draw_idle", lambda: painted.append(viewer.drawn))
    viewer.attach(RE, router)
    RE.subscribe(router)
    RE(bp.count([detector()], 3))
    painted.clear()
    viewer.close()
    assert viewer.drawn == 1
    assert painted
    assert viewer.figure.axes[0].get_title().startswith("point 3")
    assert (tmp_path / "live.png").exists() == saved


@pytest.mark.usefixtures("_window")
def test_a_view_whose_window_is_closed_is_closed_too(RE):
    router = DenoiseRouter(settings(data_keys=[KEY]), UnitDenoiser())
    viewer = FrameViewer(KEY, interval_s=60.0)
    viewer.attach(RE, router)
    RE.subscribe(router)
    CloseEvent("close_event", viewer.figure.canvas)._process()  # as of a window of Qt or Tk
    RE(bp.count([detector()], 2))
    assert not viewer._raw.is_there
    assert viewer.drawn == 0


@pytest.mark.usefixtures("_window")
def test_a_window_that_stands_still_during_a_scan_is_told(logged, caplog):
    viewer = FrameViewer(KEY, interval_s=60.0)
    assert "The live view is in a window of webagg, which stands still during a scan" in logged()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    viewer.close()
