"""Documents that tell where frames are, lost on a message bus."""

import logging
import time

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from bluesky_tiled_plugins import TiledWriter
from live_path import Camera, poisson, settings, values
from lossy_bus import Counting, classic, filled, fly, in_files, means, no_tiled, nth, step, taken
from ophyd_async.core import StaticPathProvider, TriggerInfo, UUIDFilenameProvider, init_devices
from tiers import thorough

from bluesky_denoise import DenoiseRouter, GapFiller
from bluesky_denoise.bus.lost_events import LostEvents
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.testing import DocumentCollector

FLOWN = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("gone", [(1,), (2, 3), (4,), (1, 2, 3, 4)], ids=str)
def test_lost_frames_of_a_fly_scan_come_from_tiled(RE, raw, tiled, tmp_path, gone):
    documents = taken(RE, raw, tiled, fly([in_files(tmp_path)]))
    assert "event" not in raw.by_name
    derived = filled(documents, tiled.client, nth(documents, "stream_datum", *gone))
    assert values(derived, "raw_seq_num") == means(derived) == FLOWN
    assert values(derived, "denoise_ok") == [True] * 8


@pytest.mark.thorough
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


@pytest.mark.thorough
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
        thorough(classic, "datum", (1,)),
        (classic, "datum", (3, 5)),
        thorough(classic, "resource", (1,)),
        thorough(in_files, "stream_datum", (1,)),
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


@pytest.mark.thorough
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
    filler = GapFiller(router, tiled.client, patience_s=100)
    RE.subscribe(lambda name, doc: name == "stream_resource" or filler(name, doc))
    began = time.monotonic()
    RE(step([in_files(tmp_path)]))
    assert means(derived) == [1, 2, 3, 4, 5]
    RE(fly([in_files(tmp_path)]))
    assert means(derived) == [1, 2, 3, 4, 5, *FLOWN]
    assert time.monotonic() - began < 100, "a lost frame was waited for in vain"


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


def test_what_tiled_lacks_is_not_waited_for_at_each_event(RE, raw, tiled, tmp_path, monkeypatch):
    documents = taken(RE, raw, tiled, step([in_files(tmp_path)]))
    fetch, patience = LostEvents.fetch, []

    def at_once(self, uid, stream, first, last, patience_s):
        patience.append(patience_s)
        return fetch(self, uid, stream, first, last, 0.0)

    monkeypatch.setattr(LostEvents, "fetch", at_once)
    filler = GapFiller(DenoiseRouter(settings()), {}, patience_s=60)
    for name, doc in documents:
        if name != "stream_resource":
            filler(name, doc)
    first, *later = patience
    assert (first, len(later)) == (60, 4)
    assert max(later) <= 1


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


@pytest.mark.thorough
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
    all_but_the_first = nth(documents, "stream_datum", 2, 3, 4, 5)
    derived = filled(documents, tiled.client, all_but_the_first)
    assert values(derived, "raw_seq_num") == FLOWN
    assert [mean for mean in means(derived) if mean == mean] == [1, 2]
    assert values(derived, "denoise_reason")[2].startswith(told)


def test_frames_of_two_takes_of_a_row_are_never_in_one_event(RE, raw, tmp_path):
    with pytest.raises(RunEngineInterrupted):
        RE(fly([in_files(tmp_path, "a"), in_files(tmp_path, "b", 101)], pause_after=2))
    RE.resume()
    derived = filled(raw.documents, None, nth(raw.documents, "stream_datum", 2, of="a"))
    seen = list(zip(means(derived, "a"), means(derived, "b"), strict=True))
    assert np.array_equal([b - a for a, b in seen], [100] * 2 + [np.nan] * 2 + [100] * 6, True)
    assert [b for _, b in seen] == list(range(101, 111))


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
