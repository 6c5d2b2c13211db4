import logging
import time
from functools import partial

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import Camera, paused_scan, poisson, rates, settings, values
from ophyd.sim import motor
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices

from bluesky_denoise import DenoiseRouter, GapFiller
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import DocumentCollector, validate_documents
from bluesky_denoise.tiled_layouts import connect


@pytest.fixture
def saved(RE, raw, tiled):
    """Scan ten points into Tiled; return the documents."""
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    RE(bp.scan([camera], motor, -1, 1, 10))
    return raw.documents


def filled(documents, client, lost):
    """Send what is not lost through a gap filler."""
    derived = DocumentCollector()
    router = DenoiseRouter(settings())
    router.subscribe(derived)
    filler = GapFiller(router, client, patience_s=0.2)
    for name, doc in documents:
        if not lost(name, doc):
            filler(name, doc)
    validate_documents(derived.documents)
    assert [filler._runs, filler._run_of, filler._datums] == [{}, {}, {}]
    return derived


def expected(documents):
    return np.stack([doc["data"]["det_image"] / 0.5 for name, doc in documents if name == "event"])


@pytest.mark.parametrize("gone", [{3, 4, 5}, {1}, {9, 10}, set(range(1, 11))])
def test_lost_events_come_from_tiled(saved, tiled, gone):
    derived = filled(saved, tiled.client, lambda name, doc: doc.get("seq_num") in gone)
    np.testing.assert_allclose(rates(derived, "det_image"), expected(saved))
    assert values(derived, "denoise_ok") == [True] * 10
    np.testing.assert_allclose(values(derived, "motor"), np.linspace(-1, 1, 10))


def test_a_point_that_was_taken_again_and_lost_comes_from_tiled_twice(RE, raw, tiled):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    paused_scan(RE, [Camera(name="det", func=poisson(), exposure_s=0.5)])
    derived = filled(raw.documents, tiled.client, lambda name, doc: doc.get("seq_num") == 2)
    assert values(derived, "raw_seq_num") == [1, 2, 2, 3]
    np.testing.assert_allclose(rates(derived, "det_image"), expected(raw.documents))


@pytest.mark.parametrize("gone", ["start", "descriptor"])
def test_a_run_whose_beginning_was_lost_is_denoised_from_tiled(saved, tiled, gone):
    derived = filled(saved, tiled.client, lambda name, doc: name == gone)
    np.testing.assert_allclose(rates(derived, "det_image"), expected(saved))


@pytest.fixture
def configured(RE, raw, tiled):
    """Take three frames of 1 s and two of 0.1 s into one run; return the documents."""
    frames = np.random.default_rng(1).poisson(5, (5, 16, 20))
    camera = ReplayDetector(name="det", frames=ReplayFrames(frames, 1.0), exposure_s=1.0)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        yield from bps.repeat(lambda: bps.trigger_and_read([camera]), 3)
        yield from bps.configure(camera, {"cam.acquire_time": 0.1})
        yield from bps.repeat(lambda: bps.trigger_and_read([camera]), 2)

    RE(plan())
    assert [name for name, _ in raw.documents].count("descriptor") == 2
    return raw.documents


@pytest.mark.parametrize("gone", [(3,), (4,), (2, 3, 4), ("second",), (3, "second")], ids=str)
def test_lost_events_have_the_exposure_of_their_time(configured, tiled, gone):
    second = [doc["uid"] for name, doc in configured if name == "descriptor"][1]

    def lost(name, doc):
        return doc.get("seq_num") in gone or (doc["uid"] == second and "second" in gone)

    derived = filled(configured, tiled.client, lost)
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5]
    assert values(derived, "det_image_exposure_s") == [1.0, 1.0, 1.0, 0.1, 0.1]
    assert values(derived, "denoise_ok") == [True] * 5


@pytest.mark.parametrize("found", [True, False], ids=["in Tiled", "nowhere"])
def test_a_stream_whose_descriptor_was_lost_leaves_the_others_alone(RE, raw, tiled, found):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        for _ in range(3):
            yield from bps.trigger_and_read([camera])
            yield from bps.trigger_and_read([camera], name="dark")

    RE(plan())
    derived = DocumentCollector()
    router = DenoiseRouter(settings(streams=("primary", "dark")))
    router.subscribe(derived)
    filler = GapFiller(router, tiled.client if found else None, patience_s=0.2)
    for name, doc in raw.documents:
        if not (name == "descriptor" and doc["name"] == "dark"):
            filler(name, doc)
    validate_documents(derived.documents)
    streams = {"denoised": 3} | ({"denoised_dark": 3} if found else {})
    assert derived.by_name["stop"][0]["num_events"] == streams


def test_what_is_not_in_tiled_either_is_recorded_as_lost(saved):
    derived = filled(saved, None, lambda name, doc: doc.get("seq_num") in {3, 4})
    assert values(derived, "denoise_ok") == [n not in (3, 4) for n in range(1, 11)]
    reasons = values(derived, "denoise_reason")
    assert reasons[2] == reasons[3] == "lost on the message bus, and not in Tiled"
    assert np.isnan(rates(derived, "det_image")[2:4]).all()


def test_a_tiled_that_cannot_be_reached_is_told(saved, caplog):
    catalog = partial(connect, settings(tiled_uri="http://127.0.0.1:9"))
    derived = filled(saved, catalog, lambda name, doc: doc.get("seq_num") == 3)
    told = "lost on the message bus, and not to be read from Tiled (Connect"
    assert told in values(derived, "denoise_reason")[2]
    assert "the others are not to be read from Tiled" in caplog.text
    filler = GapFiller(DenoiseRouter(settings()), catalog, patience_s=0.2)
    filler("stop", saved[-1][1])  # the start was lost
    assert "and Tiled cannot be read (Connect" in caplog.text


def test_a_catalog_is_opened_when_a_gap_needs_it(saved, tiled):
    opened = []

    def catalog():
        opened.append(True)
        return tiled.client

    assert len(values(filled(saved, catalog, lambda name, doc: False), "denoise_ok")) == 10
    assert not opened
    gone = {3, 7}
    derived = filled(saved, catalog, lambda name, doc: doc.get("seq_num") in gone)
    np.testing.assert_array_equal(rates(derived, "det_image"), expected(saved))
    assert opened == [True]


def test_lost_events_of_a_detector_that_writes_files_come_from_tiled(RE, raw, tiled, tmp_path):
    frames = np.random.default_rng(1).poisson(5, (6, 16, 20)).astype(np.uint16)
    camera = AreaDetectorReplay(
        name="det", frames=ReplayFrames(frames, 0.5), exposure_s=0.5, directory=tmp_path
    )
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    RE(bp.scan([camera], motor, -1, 1, 6))

    def lost(name, doc):
        datum = name == "datum" and doc["datum_kwargs"]["point_number"] == 2
        return datum or (name == "event" and doc["seq_num"] == 3)

    derived = filled(raw.documents, tiled.client, lost)
    assert values(derived, "denoise_ok") == [True] * 6
    np.testing.assert_allclose(rates(derived, "det_image")[:, 0], frames / 0.5)


class Counting:
    """A frame generator whose every pixel is the number of the frame."""

    shape = (16, 20)

    def __init__(self, first=1):
        self._next = first

    def __call__(self, exposure_s):
        self._next += 1
        return np.full(self.shape, self._next - 1, np.uint16)


def in_files(directory, name="det", first=1):
    """Return an ophyd-async detector, whose frames are announced by stream datums."""
    with init_devices():
        where = StaticPathProvider(UUIDFilenameProvider(), directory)
        camera = AsyncReplayDetector(where, Counting(first), name=name)
    return camera


def classic(directory):
    """Return an areaDetector of ophyd, whose frames are announced by datums."""
    return AreaDetectorReplay(name="det", frames=Counting(), exposure_s=1.0, directory=directory)


def taken(RE, raw, tiled, plan):
    """Run a plan into Tiled, and resume it when it pauses; return the documents."""
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    try:
        RE(plan)
    except RunEngineInterrupted:
        RE.resume()
    return raw.documents


def fly(cameras, pause_after=None):
    """Fly in four rows of two frames; one of them may be taken again after a pause."""

    @bpp.stage_decorator(cameras)
    @bpp.run_decorator()
    def plan():
        for row in (1, 2, 3, 4):
            yield from bps.checkpoint()
            for camera in cameras:
                info = TriggerInfo(number_of_events=2, livetime=1.0)
                yield from bps.prepare(camera, info, wait=True)
            if row == 1:
                yield from bps.declare_stream(*cameras, name="primary", collect=True)
            yield from bps.kickoff_all(*cameras, wait=True)
            yield from bps.complete_all(*cameras, wait=True)
            yield from bps.collect(*cameras, name="primary")
            if row == pause_after:
                yield from bps.pause()

    return plan()


def step(detectors, pause_after=None):
    """Take five points; one of them may be taken again after a pause."""

    @bpp.stage_decorator(detectors)
    @bpp.run_decorator()
    def plan():
        for number in (1, 2, 3, 4, 5):
            yield from bps.checkpoint()
            yield from bps.mv(motor, number)
            yield from bps.trigger_and_read([*detectors, motor])
            if number == pause_after:
                yield from bps.pause()

    return plan()


def nth(documents, kind, *numbers, of=""):
    """Return a function that loses documents of a kind by their order, from 1.

    Stream resources and stream datums are those of a data key, if one is given.
    """
    keys = {doc["uid"]: doc["data_key"] for name, doc in documents if name == "stream_resource"}
    known = [
        doc
        for name, doc in documents
        if name == kind and of in ("", keys.get(doc.get("stream_resource", doc.get("uid"))))
    ]
    gone = [known[number - 1] for number in numbers]
    return lambda name, doc: name == kind and any(doc is one for one in gone)


def means(derived, key="det"):
    """Return the mean counts of the frames, by which they are told."""
    return [value / 320 for value in values(derived, f"{key}_raw_total")]


def no_tiled():
    raise AssertionError("nothing was lost: Tiled is not needed")


FLOWN = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("gone", [(1,), (2, 3), (4,), (1, 2, 3, 4)], ids=str)
def test_lost_frames_of_a_fly_scan_come_from_tiled(RE, raw, tiled, tmp_path, gone):
    documents = taken(RE, raw, tiled, fly([in_files(tmp_path)]))
    assert "event" not in raw.by_name
    derived = filled(documents, tiled.client, nth(documents, "stream_datum", *gone))
    assert values(derived, "raw_seq_num") == means(derived) == FLOWN
    assert values(derived, "denoise_ok") == [True] * 8


def test_frames_of_a_fly_scan_whose_stream_resource_was_lost_come_from_tiled(
    RE, raw, tiled, tmp_path
):
    documents = taken(RE, raw, tiled, fly([in_files(tmp_path)]))
    router, derived = DenoiseRouter(settings()), DocumentCollector()
    router.subscribe(derived)
    filler = GapFiller(router, tiled.client, patience_s=0.2)
    for name, doc in documents:
        if name == "stop":
            assert means(derived) == [1, 2, 3, 4, 5, 6]
        if name != "stream_resource":
            filler(name, doc)
    assert values(derived, "raw_seq_num") == means(derived) == FLOWN


@pytest.mark.parametrize(("kind", "gone"), [("stream_datum", (2, 4)), ("stream_resource", (1,))])
@pytest.mark.parametrize("key", ["a", "b"])
def test_of_two_flown_detectors_the_frames_of_one_are_lost(
    RE, raw, tiled, tmp_path, kind, gone, key
):
    cameras = [in_files(tmp_path, "a"), in_files(tmp_path, "b", 101)]
    documents = taken(RE, raw, tiled, fly(cameras))
    derived = filled(documents, tiled.client, nth(documents, kind, *gone, of=key))
    assert values(derived, "raw_seq_num") == means(derived, "a") == FLOWN
    assert means(derived, "b") == [100 + number for number in FLOWN]


@pytest.mark.parametrize(
    ("make", "kind", "gone"),
    [
        (classic, "datum", (1,)),
        (classic, "datum", (3, 5)),
        (classic, "resource", (1,)),
        (in_files, "stream_datum", (1,)),
        (in_files, "stream_datum", (3, 5)),
        (in_files, "stream_resource", (1,)),
    ],
)
def test_lost_frames_of_a_step_scan_come_from_tiled(RE, raw, tiled, tmp_path, make, kind, gone):
    documents = taken(RE, raw, tiled, step([make(tmp_path)]))
    derived = filled(documents, tiled.client, nth(documents, kind, *gone))
    key = "det_image" if make is classic else "det"
    assert values(derived, "raw_seq_num") == means(derived, key) == [1, 2, 3, 4, 5]
    assert values(derived, "motor") == [1, 2, 3, 4, 5]
    assert values(derived, "denoise_ok") == [True] * 5
    assert derived.by_name["stop"][0]["exit_status"] == "success"


def test_events_and_frames_that_are_lost_together_come_from_tiled(RE, raw, tiled, tmp_path):
    documents = taken(RE, raw, tiled, step([in_files(tmp_path)]))
    event, datum = nth(documents, "event", 1, 2, 4), nth(documents, "stream_datum", 2, 4, 5)
    derived = filled(documents, tiled.client, lambda *doc: event(*doc) or datum(*doc))
    assert values(derived, "raw_seq_num") == means(derived) == [1, 2, 3, 4, 5]
    assert values(derived, "motor") == [1, 2, 3, 4, 5]


def test_a_count_without_other_readings_gets_its_lost_frames_once(RE, raw, tiled, tmp_path):
    documents = taken(RE, raw, tiled, bp.count([in_files(tmp_path)], 5))
    for kind, gone in (("stream_datum", (1, 3)), ("stream_resource", (1,)), ("event", (1, 4))):
        derived = filled(documents, tiled.client, nth(documents, kind, *gone))
        assert values(derived, "raw_seq_num") == means(derived) == [1, 2, 3, 4, 5]


def test_lost_frames_come_while_the_scan_runs(RE, raw, tiled, tmp_path):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    derived = DocumentCollector()
    router = DenoiseRouter(settings())
    router.subscribe(derived)
    filler = GapFiller(router, tiled.client)
    RE.subscribe(lambda name, doc: name == "stream_resource" or filler(name, doc))
    began = time.monotonic()
    RE(step([in_files(tmp_path)]))
    assert means(derived) == [1, 2, 3, 4, 5]
    RE(fly([in_files(tmp_path)]))
    assert means(derived) == [1, 2, 3, 4, 5, *FLOWN]
    assert time.monotonic() - began < 10, "a lost frame was waited for in vain"


@pytest.mark.parametrize(("make", "kind"), [(classic, "datum"), (in_files, "stream_datum")])
def test_frames_that_are_not_in_tiled_either_are_recorded_as_lost(
    RE, raw, tiled, tmp_path, make, kind
):
    documents = taken(RE, raw, tiled, step([make(tmp_path)]))
    derived = filled(documents, None, nth(documents, kind, 2))
    assert values(derived, "denoise_ok") == [True, False, True, True, True]
    assert values(derived, "denoise_reason")[1] == "lost on the message bus, and not in Tiled"
    assert values(derived, "motor") == [1, 2, 3, 4, 5]
    assert derived.by_name["stop"][0]["exit_status"] == "success"


def test_frames_of_a_fly_scan_that_are_not_in_tiled_either_are_recorded_as_lost(
    RE, raw, tiled, tmp_path
):
    documents = taken(RE, raw, tiled, fly([in_files(tmp_path)]))
    derived = filled(documents, None, nth(documents, "stream_datum", 2, 4))
    assert values(derived, "raw_seq_num") == FLOWN
    assert values(derived, "denoise_ok") == [True, True, False, False] * 2
    assert values(derived, "denoise_reason")[2] == "lost on the message bus, and not in Tiled"


def test_what_tiled_lacks_is_not_waited_for_at_each_event(RE, raw, tiled, tmp_path):
    documents = taken(RE, raw, tiled, step([in_files(tmp_path)]))
    router = DenoiseRouter(settings())
    filler = GapFiller(router, {}, patience_s=2)
    began = time.monotonic()
    for name, doc in documents:
        if name != "stream_resource":
            filler(name, doc)
    assert 2 < time.monotonic() - began < 8


@pytest.mark.parametrize("make", [classic, in_files])
def test_points_of_a_step_scan_that_are_taken_again_are_no_gap(RE, raw, tiled, tmp_path, make):
    documents = taken(RE, raw, tiled, step([make(tmp_path)], pause_after=3))
    derived = filled(documents, no_tiled, lambda name, doc: False)
    assert values(derived, "raw_seq_num") == [1, 2, 3, 3, 4, 5]
    assert means(derived, "det_image" if make is classic else "det") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number", [1, 2])
def test_rows_of_a_fly_scan_that_are_taken_again_are_no_gap(
    RE, raw, tiled, tmp_path, number, caplog
):
    cameras = [in_files(tmp_path, f"det{n}") for n in range(number)]
    documents = taken(RE, raw, tiled, fly(cameras, pause_after=2))
    derived = filled(documents, no_tiled, lambda name, doc: False)
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 3, 4, 5, 6, 7, 8]
    assert means(derived, "det0") == list(range(1, 11))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("kind", "gone", "seq_nums", "frames"),
    [
        ("stream_datum", (3,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),  # before the pause
        ("stream_datum", (4,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),  # after it
        ("stream_datum", (5,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
        ("event", (3,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
        ("event", (5,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
        ("stream_resource", (1,), [1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_what_is_lost_where_points_are_taken_again_is_that_of_its_time(
    RE, raw, tiled, tmp_path, kind, gone, seq_nums, frames
):
    documents = taken(RE, raw, tiled, step([in_files(tmp_path)], pause_after=3))
    derived = filled(documents, tiled.client, nth(documents, kind, *gone))
    assert values(derived, "raw_seq_num") == seq_nums
    assert means(derived) == frames
    assert values(derived, "motor") == seq_nums


def test_rows_that_tiled_does_not_number_are_recorded_as_lost(RE, raw, tiled, tmp_path):
    documents = taken(RE, raw, tiled, fly([in_files(tmp_path)], pause_after=2))
    derived = filled(documents, tiled.client, nth(documents, "stream_datum", 4))  # of row 3
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 3, 4, 5, 6, 7, 8]
    assert [mean for mean in means(derived) if mean == mean] == [1, 2, 3, 4, 5, 6, 9, 10]
    told = "lost on the message bus, and not to be told in Tiled from points taken again"
    assert values(derived, "denoise_reason")[6].startswith(told)


class Configured(AsyncReplayDetector):
    """A detector whose configuration the RunEngine reads again when it is told to."""

    def configure(self):
        return {}, {}


def test_rows_that_may_have_another_exposure_are_recorded_as_lost(RE, raw, tiled, tmp_path):
    with init_devices():
        where = StaticPathProvider(UUIDFilenameProvider(), tmp_path)
        camera = Configured(where, Counting(), name="det")

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        for exposure_s in (1.0, 1.0, 0.1, 0.1, 0.1):
            if raw.by_name.get("stream_datum"):
                yield from bps.mv(camera.driver.acquire_time, exposure_s)
                yield from bps.configure(camera)
            yield from bps.prepare(camera, TriggerInfo(), wait=True)
            if not raw.by_name.get("stream_datum"):
                yield from bps.declare_stream(camera, name="primary", collect=True)
            yield from bps.kickoff(camera, wait=True)
            yield from bps.complete(camera, wait=True)
            yield from bps.collect(camera, name="primary")

    documents = taken(RE, raw, tiled, plan())
    derived = filled(documents, tiled.client, nth(documents, "stream_datum", 3))
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5]
    assert values(derived, "denoise_ok") == [True, True, False, True, True]
    derived = filled(documents, tiled.client, lambda name, doc: False)
    assert values(derived, "det_exposure_s") == [1.0, 1.0, 0.1, 0.1, 0.1]


def test_a_fly_scan_without_events_has_no_gaps(RE, raw, tmp_path):
    camera = in_files(tmp_path)

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        yield from bps.prepare(camera, TriggerInfo(number_of_events=5, livetime=0.5), wait=True)
        yield from bps.declare_stream(camera, name="primary", collect=True)
        yield from bps.kickoff(camera, wait=True)
        yield from bps.collect_while_completing(
            [camera], [camera], flush_period=0.05, stream_name="primary"
        )

    RE(plan())
    assert "event" not in raw.by_name
    derived = filled(raw.documents, None, lambda name, doc: False)
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5]
    assert values(derived, "denoise_ok") == [True] * 5


def test_lost_frames_of_a_stream_that_is_not_denoised_are_not_waited_for(RE, raw, tmp_path):
    camera, other = Camera(name="det", func=poisson()), in_files(tmp_path, "other")

    @bpp.stage_decorator([other])
    @bpp.run_decorator()
    def plan():
        for _ in range(3):
            yield from bps.trigger_and_read([other], "other")
            yield from bps.trigger_and_read([camera])

    RE(plan())
    began = time.monotonic()
    filler = GapFiller(DenoiseRouter(settings()), {}, patience_s=60)
    unwanted = GapFiller(DenoiseRouter(settings(data_keys=["nothing"])), {}, patience_s=60)
    for name, doc in raw.documents:
        if name != "stream_resource":
            filler(name, doc)
        if name != "event":
            unwanted(name, doc)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("make", "kind"), [(classic, "datum"), (in_files, "stream_datum")])
def test_what_has_come_is_forgotten_in_the_run(RE, raw, tmp_path, make, kind):
    filler = GapFiller(DenoiseRouter(settings()))
    RE.subscribe(filler)
    sizes = []

    def kept(name, doc):
        (run,) = filler._runs.values()
        held = [filler._run_of, filler._datums, run.names, run.keys]
        sizes.append(sum(map(len, held + [s.shifts for s in run.streams.values()])))

    RE.subscribe(kept, "event")
    RE(step([make(tmp_path)]))
    assert len(raw.by_name[kind]) == 5
    assert sizes == sizes[:1] * 5


def test_a_gap_in_a_stream_that_is_not_denoised_is_not_waited_for(RE, raw):
    camera = Camera(name="det", func=poisson(), exposure_s=0.5)

    @bpp.run_decorator()
    def plan():
        for _ in range(3):
            yield from bps.trigger_and_read([camera], "other")
        yield from bps.trigger_and_read([camera])

    RE(plan())
    other = next(d["uid"] for d in raw.by_name["descriptor"] if d["name"] == "other")
    filler = GapFiller(DenoiseRouter(settings()), {}, patience_s=60)
    began = time.monotonic()
    for name, doc in raw.documents:
        if doc.get("descriptor") != other or doc["seq_num"] != 2:
            filler(name, doc)
    assert time.monotonic() - began < 30
