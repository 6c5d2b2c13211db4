"""Which frames in Tiled are of which event: several in one, fly scans, exposures that change."""

import json
import re
from contextlib import nullcontext
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import SHAPE, Camera, PlainImage, poisson, settings, values
from ophyd.sim import SynSignal
from ophyd_async.core import TriggerInfo, init_devices
from router_fixtures import EXPOSURE_S, path_provider
from tiled_fixtures import Live, in_tiled

from bluesky_denoise import denoised_streams, reprocess
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.archive import ArchivedStream, archived_documents
from bluesky_denoise.in_tiled.event_array import rows_at_once
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.nexus import export_nexus
from bluesky_denoise.reprocessing import StoredResults
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser
from bluesky_denoise.training.tiled_runs import read_run
from bluesky_denoise.views.picture import draw_event

FRAMES = np.random.default_rng(3).poisson(5, (12, *SHAPE)).astype(np.uint16)


class Detector(AsyncReplayDetector):
    """A detector that has more to tell of its files, and can be configured."""

    join_method = "stack"

    def configure(self):
        """Have the RunEngine read the configuration anew."""
        return {}, {}

    async def collect_asset_docs(self, index=None):
        async for name, doc in super().collect_asset_docs(index):
            if name == "stream_resource":
                doc["parameters"]["join_method"] = self.join_method
            yield name, doc


@pytest.fixture
def detector(RE, tmp_path):
    with init_devices():
        detector = Detector(
            path_provider(tmp_path), ReplayFrames(FRAMES, EXPOSURE_S), exposure_s=EXPOSURE_S
        )
    return detector


@pytest.fixture
def beside(tiled, tmp_path):
    """Return a function that denoises documents into Tiled, as beside the scan."""

    def beside(documents):
        one = Live(
            tiled_uri=tiled.uri,
            frames_directory=tmp_path / "denoised",
            backup_directory=tmp_path / "backup",
        )
        one.router.feed(documents)
        assert one.sink.close(30) == []
        return one.settings

    return beside


def exported(run, path):
    """Write the newest result to a file; return its raw and its denoised frames in counts."""
    with h5py.File(export_nexus(run, denoised_streams(run)[0], path)) as file:
        rates = file["entry/detector_denoised/rate"][:]
        return file["entry/detector/counts"][:], rates * np.float32(EXPOSURE_S)


def drawn(run, event, path, monkeypatch):
    """Draw an event; return the counts of the raw frame and of the denoised one, rounded.

    No pixel is drawn darker than a thousandth of the brightest.
    """
    images, imshow = [], plt.Axes.imshow

    def keep(axes, image, **options):
        images.append(np.array(image))
        return imshow(axes, image, **options)

    with monkeypatch.context() as patched:
        patched.setattr(plt.Axes, "imshow", keep)
        draw_event(run, denoised_streams(run)[0], event, path)
    return [np.round(image * EXPOSURE_S) for image in images[:2]]


# Frames that are of no event, or of another stream -----------------------------------------


@pytest.mark.thorough
def test_a_file_with_frames_of_other_streams_is_not_denoised_from_the_archive(
    RE, raw, tiled, written, detector, motor, beside, tmp_path
):
    """A raw frame beside the denoised one of another: Tiled does not know which are whose."""

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan():
        for stream in ("primary", "dark", "primary"):
            yield from bps.trigger_and_read([detector, motor], stream)

    (uid,) = RE(plan())
    beside(raw.documents)
    run = in_tiled(tiled, uid)
    assert len(run["primary"]["detector"]) == 3
    going_on = MagicMock(wraps=run, metadata={"start": run.metadata["start"]})
    going_on.__iter__.side_effect, going_on.__getitem__.side_effect = run.__iter__, run.__getitem__
    for take in (
        lambda: list(archived_documents(run)),
        lambda: list(ArchivedStream(going_on, "primary").events()),
        lambda: exported(run, tmp_path / "x.h5"),
    ):
        with pytest.raises(DenoiseError, match="have frames for 3 events, and there are 2"):
            take()


@pytest.fixture
def ended(RE, raw, tiled, written, detector, motor, beside):
    """Return a function that scans two points, and gives the run with more frames than these."""

    def ended(broken_off, unread=0, dark=0):
        @bpp.stage_decorator([detector])
        @bpp.run_decorator()
        def plan():
            for stream in ("primary", "primary", *["dark"] * dark):
                yield from bps.trigger_and_read([detector, motor], stream)
            if broken_off:
                raise RuntimeError("the beam is lost")

        with pytest.raises(RuntimeError) if broken_off else nullcontext():
            RE(plan())
        beside(raw.documents)
        (resource, *_) = raw.by_name["stream_resource"]
        with h5py.File(urlsplit(resource["uri"]).path, "a") as file:  # triggered, and not read
            file[resource["parameters"]["dataset"]].resize(2 + unread + dark, 0)
        uid = raw.documents[0][1]["uid"]
        with pytest.warns(UserWarning, match="primary/detector"):
            in_tiled(tiled, uid).validate(raise_on_error=True)
        return in_tiled(tiled, uid)

    return ended


def test_the_frame_of_a_point_that_was_broken_off_is_the_last(ended, tmp_path):
    run = ended(True, unread=1)
    assert len(run["primary"]["detector"]) == 3
    events = [doc for name, doc in archived_documents(run) if name == "event"]
    for event, frame in zip(events, FRAMES[:2], strict=True):
        np.testing.assert_array_equal(np.squeeze(event["data"]["detector"]), frame)
    np.testing.assert_array_equal(exported(run, tmp_path / "x.h5")[0], FRAMES[:2])
    events = ArchivedStream(run, "primary").events(without_frames={1})
    assert ["detector" in event["data"] for event in events] == [False, True]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("broken_off", "unread", "dark"), [(True, 2, 0), (False, 1, 0), (True, 0, 1)]
)
def test_more_frames_than_that_may_be_of_any_event(ended, broken_off, unread, dark):
    """Of two unread ones, of one in a run that went to its end, of one in another stream."""
    run = ended(broken_off, unread, dark)
    number = 2 + unread + dark
    with pytest.raises(DenoiseError, match=f"have frames for {number} events, and there are 2"):
        list(archived_documents(run))


# Several frames in an event ---------------------------------------------------------------


@pytest.fixture(params=["when it is validated", "from the start"])
def joined(request, RE, raw, tiled, written, detector, beside):
    """Return a denoised run of four events of two frames each, which Tiled has end to end."""
    if request.param == "from the start":
        detector.join_method = "concat"

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan():
        yield from bps.prepare(detector, TriggerInfo(collections_per_event=2), wait=True)
        for _ in range(4):
            yield from bps.trigger_and_read([detector])

    (uid,) = RE(plan())
    beside(raw.documents)
    run = in_tiled(tiled, uid)
    if request.param == "when it is validated":
        assert run["primary"]["detector"].shape == (4, 2, *SHAPE)
        events = StoredStream(run["primary"]).frames("detector")
        assert len(events) == 4
        np.testing.assert_array_equal(events[1:4], FRAMES[2:8].reshape(3, 2, *SHAPE))
        with pytest.warns(UserWarning, match="primary/detector"):
            run.validate(raise_on_error=True)
        run = in_tiled(tiled, uid)
    assert run["primary"]["detector"].shape == (8, *SHAPE)
    events = StoredStream(run["primary"]).frames("detector")
    assert (events.shape, events.dtype) == ((4, 2, *SHAPE), events[:1].dtype)
    return run


@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(100, 195, 487)], 16),
        ([(100, 4362, 4148)], 3),  # 72 MB each
        ([(100, 2, 4362, 4148)], 1),
        ([(100, 1000, 4362, 4148)], 1),
        ([(100, 2000, 2000), (100, 2000, 2000)], 8),
        ([], 16),
    ],
)
def test_fewer_rows_of_large_frames_are_read_at_once(shapes, rows):
    arrays = [np.broadcast_to(np.uint32(0), shape) for shape in shapes]
    assert rows_at_once(*arrays) == rows


CONCAT = pytest.mark.filterwarnings("ignore:.*join_method='concat':DeprecationWarning")


@CONCAT
def test_all_frames_of_an_event_are_denoised_again(joined, beside):
    reprocess(joined, beside([]))
    again, before = denoised_streams(joined)
    for found in (again, before):
        np.testing.assert_array_equal(
            found.stream["detector"].read() * EXPOSURE_S, FRAMES[:8].reshape(4, 2, *SHAPE)
        )
        np.testing.assert_array_equal(found.stream["raw_seq_num"].read(), [1, 2, 3, 4])


@pytest.mark.thorough
@CONCAT
def test_all_frames_of_an_event_are_exported(joined, tmp_path):
    raw, denoised = exported(joined, tmp_path / "run.nxs")
    np.testing.assert_array_equal(raw, FRAMES[:8].reshape(4, 2, *SHAPE))
    np.testing.assert_array_equal(denoised, raw)


@CONCAT
def test_the_frame_of_the_event_is_drawn(joined, tmp_path, monkeypatch):
    raw, denoised = drawn(joined, 3, tmp_path / "event.png", monkeypatch)
    lit = FRAMES[4] > 0  # zero is drawn as the darkest
    np.testing.assert_array_equal(raw[lit], FRAMES[4][lit])
    np.testing.assert_array_equal(denoised, raw)


@CONCAT
def test_all_frames_of_a_point_are_trained_on(joined):
    source = read_run(joined)
    assert source.per_point == 2
    np.testing.assert_array_equal(source.counts, FRAMES[:8])


# Fly scans, which have no events ----------------------------------------------------------


def fly(detector, exposures_s=(EXPOSURE_S,) * 3, pause_after=None):
    """Take rows of three frames."""

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan():
        yield from bps.prepare(detector, TriggerInfo(number_of_events=3), wait=True)
        yield from bps.declare_stream(detector, name="primary")
        for row, exposure_s in enumerate(exposures_s):
            yield from bps.checkpoint()
            info = TriggerInfo(number_of_events=3, livetime=exposure_s)
            yield from bps.prepare(detector, info, wait=True)
            if row:
                yield from bps.configure(detector)
            yield from bps.kickoff(detector, wait=True)
            yield from bps.complete(detector, wait=True)
            yield from bps.collect(detector, return_payload=False, name="primary")
            if row == pause_after:
                yield from bps.pause()

    return plan()


def test_a_fly_scan_whose_exposure_was_changed_is_not_denoised_from_the_archive(
    RE, raw, tiled, written, detector, beside
):
    (uid,) = RE(fly(detector, (EXPOSURE_S, 0.1)))
    assert "event" not in raw.by_name
    settings = beside(raw.documents)
    run = in_tiled(tiled, uid)
    (live,) = denoised_streams(run)
    exposures = live.stream["detector_exposure_s"].read()
    np.testing.assert_array_equal(exposures, [EXPOSURE_S] * 3 + [0.1] * 3)
    expected = (
        rf"Run {uid}, stream primary: the exposure of detector was changed during the scan "
        r"\(0\.5 s, 0\.1 s\), and Tiled does not tell which frames had which.* Denoise such a "
        r"scan live, or from its documents"
    )
    for read in (lambda: reprocess(run, settings), lambda: read_run(run)):
        with pytest.raises(DenoiseError, match=expected):
            read()
    assert len(denoised_streams(in_tiled(tiled, uid))) == 1


@pytest.mark.thorough
def test_a_fly_scan_that_was_configured_as_before_is_denoised_from_the_archive(
    RE, raw, tiled, written, detector, beside
):
    (uid,) = RE(fly(detector, (EXPOSURE_S, EXPOSURE_S)))
    assert len(raw.by_name["descriptor"]) > 1
    run = in_tiled(tiled, uid)
    reprocess(run, beside([]))
    (found,) = denoised_streams(run)
    np.testing.assert_array_equal(found.stream["detector"].read()[:, 0] * EXPOSURE_S, FRAMES[:6])


@pytest.mark.thorough
def test_a_fly_scan_whose_exposure_only_the_settings_tell_is_denoised_from_the_archive(
    RE, tiled, written, tmp_path
):
    class Silent(Detector):
        async def describe_configuration(self):
            return {}

        read_configuration = describe_configuration

    with init_devices():
        detector = Silent(path_provider(tmp_path), ReplayFrames(FRAMES, EXPOSURE_S))
    (uid,) = RE(fly(detector))
    run = in_tiled(tiled, uid)
    reprocess(run, settings(tiled_uri=tiled.uri, exposure_s=EXPOSURE_S))
    (found,) = denoised_streams(run)
    np.testing.assert_array_equal(found.stream["detector"].read()[:, 0] * EXPOSURE_S, FRAMES[:9])


@pytest.fixture
def retaken(RE, tiled, written, detector):
    """Return a fly scan whose second row was taken again, after a pause."""
    with pytest.raises(RunEngineInterrupted):
        RE(fly(detector, pause_after=1))
    (uid,) = RE.resume()
    run = in_tiled(tiled, uid)
    assert run.metadata["stop"]["num_events"] == {"primary": 9}
    assert run["primary"].base["detector"].shape[0] == 12
    return run


def test_a_row_of_a_fly_scan_that_was_taken_again_is_beside_its_own_raw_frames(
    raw, retaken, beside, tmp_path, monkeypatch
):
    beside(raw.documents)
    (live,) = denoised_streams(retaken)
    numbers = live.stream["raw_seq_num"].read()
    np.testing.assert_array_equal(numbers, [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9])
    counts, denoised = exported(retaken, tmp_path / "run.nxs")
    np.testing.assert_array_equal(counts, FRAMES)
    np.testing.assert_array_equal(denoised, counts)
    np.testing.assert_array_equal(
        drawn(retaken, 8, tmp_path / "event.png", monkeypatch), [FRAMES[7], FRAMES[7]]
    )


@pytest.mark.thorough
def test_results_of_a_row_that_was_taken_again_are_taken_over_for_their_own_frames(
    raw, retaken, beside, caplog
):
    settings = beside(raw.documents)
    (live,) = denoised_streams(retaken)
    known = StoredResults(retaken, live.provenance)
    assert known.seq_nums("primary") == set(range(1, 13))  # as events from Tiled are numbered
    reprocess(retaken, settings, known=known)
    again = denoised_streams(retaken)[0]
    frames = again.stream["detector"].read().reshape(FRAMES.shape)
    np.testing.assert_array_equal(frames, live.stream["detector"].read().reshape(FRAMES.shape))


def test_results_that_cannot_be_told_apart_are_not_taken_over(raw, retaken, beside, caplog):
    beside(without_first_row(raw.documents))
    (live,) = denoised_streams(retaken)
    assert len(StoredResults(retaken, live.provenance)) == 0
    assert "Tiled does not tell which belong together" in caplog.text


def without_first_row(documents):
    """Leave out the first stream datum, as a message bus may."""
    lost = next(doc for name, doc in documents if name == "stream_datum")
    return [(name, doc) for name, doc in documents if doc is not lost]


@pytest.mark.thorough
def test_what_cannot_be_told_of_a_fly_scan_is_not_exported_and_not_drawn(
    raw, retaken, beside, tmp_path, monkeypatch
):
    settings = beside(without_first_row(raw.documents))
    (live,) = denoised_streams(retaken)
    expected = r"has 12 raw frames of 9 points, and 9 denoised ones; Tiled does not tell which"
    for write in (
        lambda: export_nexus(retaken, live, tmp_path / "run.nxs"),
        lambda: draw_event(retaken, live, 1, tmp_path / "event.png"),
    ):
        with pytest.raises(DenoiseError, match=expected):
            write()
    assert not list(tmp_path.glob("run*"))
    reprocess(retaken, settings)  # as the message says
    counts, denoised = exported(retaken, tmp_path / "run.nxs")
    np.testing.assert_array_equal(counts, FRAMES)
    np.testing.assert_array_equal(denoised, counts)
    some = np.array([1, 2, 5])  # as where that is stopped, and some frames were denoised before
    found = ArchivedStream(retaken, "primary").rows_of(some, len(FRAMES), from_archive=True)
    np.testing.assert_array_equal(found, some - 1)


@pytest.mark.thorough
def test_a_fly_scan_of_which_a_part_is_denoised_is_exported_with_its_own_raw_frames(
    RE, raw, tiled, written, detector, beside, tmp_path
):
    (uid,) = RE(fly(detector))
    beside(without_first_row(raw.documents))
    counts, denoised = exported(in_tiled(tiled, uid), tmp_path / "run.nxs")
    np.testing.assert_array_equal(counts, FRAMES[3:9])
    np.testing.assert_array_equal(denoised, counts)


def test_frames_that_tiled_has_filled_up_with_zeros_are_told_of(RE, tiled, logged):
    shapes = iter([(16, 20), (17, 22)])
    det = PlainImage(name="det", func=lambda: np.ones((16, 20)))
    det.sim_set_func(lambda: np.ones(next(shapes)))
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([det], 2))
    events = [doc for name, doc in archived_documents(in_tiled(tiled, uid)) if name == "event"]
    assert [event["data"]["det"].shape for event in events] == [(17, 22)] * 2
    told = r"det are \(17, 22\) in Tiled, and the descriptor has \(16, 20\).*zeros"
    assert re.search(told, logged())


def test_events_are_given_as_they_were_without_frames_too(RE, raw, tiled, motor):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    read = {"lamp": 3, "shutter": "open"}
    devices = [SynSignal(name=name, func=lambda value=value: value) for name, value in read.items()]
    (uid,) = RE(bp.scan(devices, motor, 1, 3, 3))
    events = [doc for name, doc in archived_documents(in_tiled(tiled, uid)) if name == "event"]
    for event, taken in zip(events, raw.by_name["event"], strict=True):
        for key in ("seq_num", "time", "data", "timestamps"):
            assert event[key] == taken[key]
    assert "lamp" in json.dumps(events)  # which takes no numbers of numpy


def test_a_router_takes_the_documents_that_tiled_gives(RE, tiled):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.count([Camera(name="det", func=poisson())], 3))
    router, derived = DenoiseRouter(settings(), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    router.feed(in_tiled(tiled, uid).documents())
    derived.validate()
    assert values(derived, "denoise_ok") == [True] * 3
    assert derived.by_name["stop"][0]["exit_status"] == "success"


def test_each_question_about_a_stream_is_asked_once(RE, tiled, camera, motor):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.scan([camera], motor, 1, 3, 3))
    run, asked = in_tiled(tiled, uid), []
    hooks = tiled.client.context.http_client.event_hooks
    tiled.client.context.http_client.event_hooks = {
        **hooks,
        "request": [*hooks["request"], lambda request: asked.append(request.url.path)],
    }
    try:
        assert len(list(archived_documents(run))) == 6
    finally:
        tiled.client.context.http_client.event_hooks = hooks
    *others, of_frames = [re.sub(rf".*/v1/|{uid}", "", path) for path in asked]
    assert others == [
        "metadata//primary",
        "search//primary",
        "table/partition//primary/internal",
    ]
    assert of_frames.startswith("array/")
