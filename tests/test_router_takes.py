"""Points that are taken again, files that follow one another, frames that never come."""

import tracemalloc

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy as np
import pytest
from bluesky.utils import RunEngineInterrupted
from composed_runs import ComposedRun
from live_path import SHAPE, rates, settings, values
from ophyd_async.core import TriggerInfo, init_devices
from router_fixtures import path_provider

from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser

EXPOSURE_S = 0.5
RISING = np.arange(1, 31, dtype=np.uint16)[:, None, None] * np.ones(SHAPE, np.uint16)
"""Frames of 1, 2, 3, ... counts in each pixel."""


def resumed(RE, plan):
    """Run a plan that pauses once."""
    with pytest.raises(RunEngineInterrupted):
        RE(plan)
    RE.resume()


@pytest.fixture
def detector(RE, tmp_path):
    with init_devices():
        detector = AsyncReplayDetector(
            path_provider(tmp_path),
            ReplayFrames(RISING, EXPOSURE_S),
            name="det",
            exposure_s=EXPOSURE_S,
        )
    return detector


def routed(*messages, **values):
    """Send documents to a router, message by message; return what it emits."""
    router = DenoiseRouter(settings(**values), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for documents in messages:
        router.feed(documents)
    derived.validate()
    return derived


def seen(derived, key="det"):
    """Return the number of the raw event and the counts in a pixel, for each derived event."""
    counts = np.array(values(derived, f"{key}_raw_total")) / np.prod(SHAPE)
    return list(zip(values(derived, "raw_seq_num"), counts.tolist(), strict=True))


@pytest.fixture
def lines(RE, raw, detector, motor):
    """Scan two lines of three points, the first of them twice; return the documents."""

    def plan():
        yield from bps.stage(detector, wait=True)
        yield from bps.open_run()
        for line in range(2):
            yield from bps.checkpoint()
            for point in range(3):
                yield from bps.mv(motor, 10 * line + point)
                yield from bps.trigger_and_read([detector, motor])
            if not line:
                yield from bps.pause()
        yield from bps.close_run()
        yield from bps.unstage(detector, wait=True)

    resumed(RE, plan())
    return raw.documents


def test_a_line_that_is_taken_again_follows_its_first_take(lines):
    expected = [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6), (4, 7), (5, 8), (6, 9)]
    for first in range(3, len(lines)):
        for second in range(first, len(lines), 4):
            derived = routed(
                *(lines[:first], lines[first:second], lines[second:]), exposure_s=EXPOSURE_S
            )
            assert seen(derived) == expected, (first, second)
            assert values(derived, "motor") == [0, 1, 2, 0, 1, 2, 10, 11, 12]
            assert values(derived, "denoise_ok") == [True] * 9


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_a_row_of_a_fly_scan_that_is_taken_again_is_denoised_twice(RE, raw, detector, at_once):
    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def fly():
        three = TriggerInfo(number_of_events=3, livetime=EXPOSURE_S)
        yield from bps.prepare(detector, three, wait=True)
        yield from bps.declare_stream(detector, name="main")
        for row in range(3):
            yield from bps.checkpoint()
            yield from bps.prepare(detector, three, wait=True)
            yield from bps.kickoff(detector, wait=True)
            yield from bps.complete(detector, wait=True)
            yield from bps.collect(detector, return_payload=False, name="main")
            if row == 1:
                yield from bps.pause()

    resumed(RE, fly())
    documents = [[item] for item in raw.documents]
    derived = routed(
        *([raw.documents] if at_once else documents), streams=["main"], exposure_s=EXPOSURE_S
    )
    taken = sum(
        doc["indices"]["stop"] - doc["indices"]["start"] for doc in raw.by_name["stream_datum"]
    )
    found = values(derived, "det_raw_total", "denoised_main")
    np.testing.assert_array_equal(np.array(found) / np.prod(SHAPE), np.arange(1, taken + 1))
    numbers = [
        number
        for doc in raw.by_name["stream_datum"]
        for number in range(doc["seq_nums"]["start"], doc["seq_nums"]["stop"])
    ]
    assert len(numbers) > len(set(numbers))
    assert values(derived, "raw_seq_num", "denoised_main") == numbers


TOLD = pytest.mark.parametrize(
    "told",
    [lambda i: {"frame": i}, lambda i: {"point_number": i}, lambda i: {}],
    ids=["frame", "point_number", "nothing"],
)
"""How a detector tells where in its file a frame is."""


@TOLD
@pytest.mark.parametrize("lines", [(3, 6), (1, 1, 1), (4,)], ids=str)
def test_each_file_is_read_from_its_own_beginning(tmp_path, told, lines):
    run, taken = ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:")), 0
    for line, points in enumerate(lines):
        datum = run.old_file(run.file(f"{line}.h5", RISING[taken : taken + points]))
        for point in range(points):
            run.event(det=datum(**told(point)))
        taken += points
    derived = routed(run.ended(), exposure_s=EXPOSURE_S)
    assert values(derived, "denoise_reason") == [""] * taken
    assert seen(derived) == [(number, number) for number in range(1, taken + 1)]


@TOLD
@pytest.mark.parametrize("streams", [["primary"], ["primary", "dark"]], ids=str)
def test_a_file_may_have_frames_of_several_streams(tmp_path, told, streams):
    run = ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:"))
    of = {"primary": run.stream, "dark": run.begin("dark")}
    order = ["primary", "dark", "primary", "primary", "dark", "primary"]
    datum = run.old_file(run.file("both.h5", RISING[: len(order)]))
    for point, name in enumerate(order):
        run.event(of[name], det=datum(**told(point)))
    derived = routed(run.ended(), exposure_s=EXPOSURE_S, streams=streams)
    for name in streams:
        stream = "denoised" if name == "primary" else f"denoised_{name}"
        expected = [count for count, other in enumerate(order, 1) if other == name]
        assert values(derived, "denoise_reason", stream) == [""] * len(expected)
        counts = np.array(values(derived, "det_raw_total", stream)) / np.prod(SHAPE)
        assert counts.tolist() == expected


def test_detectors_that_share_a_file_have_a_data_set_and_a_count_each(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:"), cam=(SHAPE, "FILESTORE:"))
    path = run.file("both.h5", RISING[:3])
    with h5py.File(path, "a") as file:
        file["cam"] = 10 * RISING[:3]
    datum = run.old_file(path)
    for _ in range(3):
        run.event(det=datum(), cam=datum(dataset="/cam"))
    derived = routed(run.ended(), exposure_s=EXPOSURE_S)
    assert values(derived, "denoise_reason") == [""] * 3
    assert seen(derived) == [(1, 1), (2, 2), (3, 3)]
    assert seen(derived, "cam") == [(1, 10), (2, 20), (3, 30)]


def test_an_event_may_be_of_a_frame_that_another_was_of(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:"))
    datum = run.old_file(run.file("again.h5", RISING[:3]))
    for frame in (0, 1, 2, 1):
        run.event(det=datum(frame=frame))
    derived = routed(run.ended(), exposure_s=EXPOSURE_S)
    assert values(derived, "denoise_reason") == [""] * 4
    assert (np.array(values(derived, "det_raw_total")) / np.prod(SHAPE)).tolist() == [1, 2, 3, 2]


def test_a_resource_that_names_no_run_is_of_the_youngest(tmp_path):
    outer, inner = (ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:")) for _ in range(2))
    datum = inner.old_file(inner.file("inner.h5", RISING[:2]))
    del inner.documents[-1][1]["run_start"]
    for point in range(2):
        inner.event(det=datum(point_number=point))
    derived = routed([*outer.documents, *inner.ended()], exposure_s=EXPOSURE_S)
    assert values(derived, "denoise_reason") == [""] * 2
    assert seen(derived) == [(1, 1), (2, 2)]


def _datums_behind(tmp_path, number):
    """Compose a run whose events have come before their datums; return these, too."""
    run = ComposedRun(tmp_path, det=(SHAPE, "FILESTORE:"))
    datum = run.old_file(run.file("late.h5", RISING[:number]))
    ids = [datum(point_number=point) for point in range(number)]
    datums = [run.documents.pop() for _ in ids][::-1]
    for datum_id in ids:
        run.event(det=datum_id)
    return run, datums


def test_datums_that_come_late_leave_out_none_but_what_lacks(tmp_path):
    run, datums = _datums_behind(tmp_path, 5)
    run.documents += datums[:1] + datums[2:]
    derived = routed(run.ended(), exposure_s=EXPOSURE_S)
    assert values(derived, "denoise_reason") == ["", "no frames came for det", "", "", ""]
    assert [count for _, count in seen(derived)][2:] == [3, 4, 5]


def test_a_module_that_is_cut_out_of_the_data_set_is_what_is_denoised(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "STREAM:"))
    both = np.stack([RISING[:3], 10 * RISING[:3]], 1)  # (N, module, H, W)
    span = run.files("det", run.file("two.h5", both), slice=":,1,:,:", squeeze=True)
    for number in (1, 2, 3):
        span(number, number)
        run.event()
    derived = routed(run.ended(), exposure_s=EXPOSURE_S)
    assert seen(derived) == [(1, 10), (2, 20), (3, 30)]


def test_a_detector_that_hangs_does_not_hold_up_the_others(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "STREAM:"), cam=(SHAPE, "STREAM:"))
    det = run.files("det", run.file("det.h5", RISING[:6]))
    cam = run.files("cam", run.file("cam.h5", RISING[:6]))
    for number in range(1, 7):
        det(number, number)
        if number != 3:
            cam(number, number)
        run.event()
    router = DenoiseRouter(settings(exposure_s=EXPOSURE_S), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for document in run.documents:
        router.feed([document])
    assert seen(derived) == [(number, number) for number in range(1, 7)]
    assert values(derived, "denoise_reason")[2] == "no frames came for cam"
    assert values(derived, "denoise_ok") == [True, True, False, True, True, True]


def test_frames_that_nothing_announces_are_not_waited_for_to_the_end(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "STREAM:"), cam=(SHAPE, "STREAM:"))
    det = run.files("det", run.file("det.h5", RISING[:3]))
    for number in range(1, 4):
        det(number, number)
        run.event()
    router = DenoiseRouter(settings(exposure_s=EXPOSURE_S, read_timeout_s=1e-9), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(run.documents)
    assert [number for number, _ in seen(derived)] == [1, 2, 3]
    assert values(derived, "denoise_reason") == ["no frames came for cam"] * 3
    seen_so_far = len(run.documents)
    run.files("cam", run.file("cam.h5", RISING[:3]))(3, 3)
    router.feed(run.ended()[seen_so_far:])
    assert values(derived, "raw_seq_num") == [1, 2, 3]  # too late, and not a second event


def test_frames_of_events_that_are_denoised_together_stay_with_their_events(tmp_path):
    run = ComposedRun(tmp_path, det=((2, *SHAPE), "STREAM:"))
    run.files("det", run.file("det.h5", RISING[:6]))(1, 3)
    for _ in range(3):
        run.event()
    documents = run.ended()
    for messages in ([documents], [[document] for document in documents]):
        derived = routed(*messages, exposure_s=EXPOSURE_S, frames_directory=tmp_path / "denoised")
        found = rates(derived, "det").mean(axis=(2, 3)) * EXPOSURE_S
        assert found.tolist() == [[1, 2], [3, 4], [5, 6]]
        assert values(derived, "motor") == [0.0, 0.0, 0.0]  # none went before its event


def test_frames_of_a_fly_scan_are_denoised_before_its_end(tmp_path):
    run = ComposedRun(tmp_path, motor=False, det=(SHAPE, "STREAM:"))
    det = run.files("det", run.file("det.h5", RISING[:3]))
    for number in range(1, 4):
        det(number, number)
    router, derived = DenoiseRouter(settings(exposure_s=1.0), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    for document in run.documents:
        router.feed([document])
    assert seen(derived) == [(1, 1), (2, 2)]  # an event of the last may come


def test_a_frame_whose_event_never_comes_is_denoised_at_the_end(tmp_path):
    run = ComposedRun(tmp_path, det=(SHAPE, "STREAM:"))
    det = run.files("det", run.file("det.h5", RISING[:2]))
    det(1, 1)
    run.event()
    det(2, 2)
    derived = routed(*([document] for document in run.ended()), exposure_s=EXPOSURE_S)
    assert seen(derived) == [(1, 1), (2, 2)]
    assert values(derived, "motor") == [0.0, None]


def test_datums_that_come_behind_their_events_are_waited_for(tmp_path):
    run, datums = _datums_behind(tmp_path, 3)
    run.documents += datums
    one_by_one = ([document] for document in run.ended())
    derived = routed(*one_by_one, exposure_s=EXPOSURE_S, read_timeout_s=1e-9)
    assert values(derived, "denoise_reason") == [""] * 3
    assert seen(derived) == [(1, 1), (2, 2), (3, 3)]


def test_a_long_stream_datum_is_denoised_in_batches(tmp_path):
    frames = np.ones((400, 64, 64), np.uint16)
    run = ComposedRun(tmp_path, motor=False, det=((64, 64), "STREAM:"))
    run.files("det", run.file("long.h5", frames))(1, 400)
    router = DenoiseRouter(
        settings(exposure_s=EXPOSURE_S, frames_directory=tmp_path / "denoised"), UnitDenoiser()
    )
    derived = DocumentCollector()
    router.subscribe(derived)
    tracemalloc.start()
    router.feed(run.ended())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(values(derived, "raw_seq_num")) == 400
    assert rates(derived, "det").shape == (400, 64, 64)
    assert peak < 0.5 * 4 * frames.size  # bytes of all of them, denoised
