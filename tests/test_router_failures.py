"""What goes wrong with a run, and what its denoised stream says of it."""

import itertools
import logging
import re
import resource
import threading
import time

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from event_model import pack_event_page
from live_path import (
    SHAPE,
    Camera,
    PlainImage,
    abort_after_three_points,
    by_stream,
    poisson,
    rates,
    settings,
    values,
)
from ophyd.sim import SynSignalWithRegistry

from bluesky_denoise.catalog import _MAY_PASS
from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.frame_store import FrameStore
from bluesky_denoise.sources.readers import read_until
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
    assert_emitted,
    validate_documents,
)


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
    router, together = DenoiseRouter(settings(exposure_s=1.0), UnitDenoiser()), DocumentCollector()
    router.subscribe(together)
    router.feed(raw.documents)
    assert values(together, "denoise_ok") == [True, False, True, False]


class RefusesNegative(UnitDenoiser):
    def denoise(self, counts, exposure_s, mask=None):
        if np.min(counts) < 0:
            raise FrameValueError("negative")
        return super().denoise(counts, exposure_s, mask)


def test_a_first_frame_that_is_refused_does_not_cost_the_others(RE, raw, build):
    _, derived = build(RefusesNegative(), exposure_s=1.0)
    det = AnyShape(name="det", func=lambda: np.zeros(SHAPE))
    frames = iter([np.full(SHAPE, n) for n in (-1, 3, 3)])
    det.sim_set_func(lambda: next(frames))
    RE(bp.count([det], 3))
    assert values(derived, "denoise_ok") == [False, True, True]
    assert [np.nanmean(f) for f in rates(derived, "det")[1:]] == [3, 3]


def test_frames_that_no_row_was_made_for_are_told_and_can_be_caught_up(RE, raw, build):
    _, derived = build(exposure_s=1.0, mask=np.zeros((18, 24), bool))
    det = AnyShape(name="det", func=lambda: np.zeros(SHAPE))
    shapes = iter([SHAPE, (18, 24), (18, 24)])
    det.sim_set_func(lambda: np.full(next(shapes), 3, np.uint32))
    RE(bp.count([det], 3))
    first, *others = values(derived, "denoise_reason")
    assert first == "det: 'det' has frames (16, 20), its mask (18, 24)"
    for reason in others:
        assert reason.startswith("'det' has shape (1, 18, 24); it could not be saved in rows of")
        assert re.search(_MAY_PASS, reason)
    assert len(others) == 2


def test_a_frame_without_a_valid_pixel_is_told(RE, raw, build):
    _, derived = build(exposure_s=1.0, frames_directory=None)
    det = AnyShape(name="det", func=lambda: np.zeros(SHAPE))
    frames = iter([np.ones(SHAPE), np.full(SHAPE, np.nan), np.ones(SHAPE)])
    det.sim_set_func(lambda: next(frames))
    RE(bp.count([det], 3))
    assert values(derived, "denoise_ok") == [True, False, True]
    assert values(derived, "denoise_reason")[1].startswith("det: no pixel is valid")


@pytest.mark.parametrize("in_pages", [False, True], ids=["events", "pages"])
def test_skipped_events_are_recorded_and_counted(RE, raw, build, logged, in_pages):
    RE(bp.count([Camera(name="det", func=poisson())], 4))
    router = DenoiseRouter(settings(), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for name, doc in raw.documents:
        skipped = "no time" if doc.get("seq_num") in (2, 3) else ""
        if in_pages and name == "event":
            router.accept("event_page", pack_event_page(doc), skipped=skipped)
        else:
            router.accept(name, doc, skipped=skipped)
    router.flush()
    derived.validate()
    assert values(derived, "denoise_ok") == [True, False, False, True]
    assert values(derived, "denoise_reason")[1] == "no time"
    assert np.isnan(rates(derived, "det_image")[1:3]).all()
    assert "2 events were skipped" in logged()


@pytest.mark.parametrize(("batch_size", "lost"), [(1, 2), (4, 5), (4, 6), (4, 8)])
def test_an_event_without_frames_waits_for_those_of_a_full_batch_before_it(
    RE, raw, build, batch_size, lost
):
    RE(bp.count([Camera(name="det", func=poisson())], 8))
    router = DenoiseRouter(settings(batch_size=batch_size), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    for name, doc in raw.documents:
        if name == "event" and doc["seq_num"] == lost:
            router.accept(name, {**doc, "data": {}, "timestamps": {}}, skipped="it was lost")
        else:
            router.accept(name, doc)
    derived.validate()
    assert values(derived, "raw_seq_num") == list(range(1, 9))
    assert values(derived, "denoise_ok") == [number != lost for number in range(1, 9)]
    assert derived.by_name["stop"][0]["exit_status"] == "success"


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
    abort_after_three_points(RE, det, "the beam is gone")
    assert raw.by_name["stop"][0]["exit_status"] == "abort"
    stop = derived.by_name["stop"][0]
    assert (stop["exit_status"], stop["reason"]) == ("abort", "the beam is gone")
    assert stop["num_events"] == {"denoised": 3}
    assert values(derived, "denoise_ok") == [True] * 3


def test_a_run_whose_end_cannot_be_handled_is_ended_all_the_same(RE, raw, build, monkeypatch):
    def broken(run):
        raise RuntimeError("out of order")

    monkeypatch.setattr("bluesky_denoise.runs.raw_run.DenoisedRun._tell_of_other_streams", broken)
    _, derived = build()
    RE(bp.count([Camera(name="det", func=poisson())], 2))
    (stop,) = derived.by_name["stop"]
    assert (stop["exit_status"], stop["reason"]) == ("fail", "RuntimeError: out of order")


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


def test_files_that_never_come_are_told_in_each_event_and_cost_one_deadline(
    RE, raw, build, tmp_path, caplog, monkeypatch
):
    number, waited_for = 20, []

    def read_at_once(source, index, deadline):
        waited_for.append(deadline - time.monotonic() > 30)
        return read_until(source, index, time.monotonic())

    monkeypatch.setattr("bluesky_denoise.runs.raw_run.read_until", read_at_once)
    _, derived = build(exposure_s=1.0, read_timeout_s=60)
    det = SynSignalWithRegistry(
        func=poisson(), name="det", save_path=str(tmp_path), save_func=lambda path, array: None
    )
    RE(bp.count([det], number))
    assert caplog.text.count("not denoised: frame") == 3  # and not once for each of a long scan
    assert caplog.text.count("of more, `denoise_reason` tells alone") == 1
    assert waited_for == [True] + [False] * (number - 1)
    assert values(derived, "denoise_ok") == [False] * number
    reasons = values(derived, "denoise_reason")
    assert all(
        re.match(rf"det: frame {i} is not readable: .*_{i}\.npy", r) for i, r in enumerate(reasons)
    )
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": number}


def test_a_file_that_is_readable_again_is_waited_for_again(RE, raw, build, tmp_path):
    """The first frame never comes, the second at once, the third after its event."""
    _, derived = build(exposure_s=1.0, read_timeout_s=1.5)
    numbers = iter((1, 2, 3))

    def save(path, array):
        number = next(numbers)
        if number == 2:
            np.save(path, array)
        elif number == 3:
            threading.Timer(0.3, np.save, (path, array)).start()

    func = poisson()
    det = SynSignalWithRegistry(func=func, name="det", save_path=str(tmp_path), save_func=save)
    RE(bp.count([det], 3))
    assert values(derived, "denoise_ok") == [False, True, True]
    np.testing.assert_array_equal(rates(derived, "det")[2], func.taken[-1])


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
    assert (
        f"1 Datum documents never came, such as {missing}" in (derived.by_name["stop"][0]["reason"])
    )


def test_an_estimate_that_is_no_number_is_marked(RE, raw):
    class Blind(UnitDenoiser):
        def denoise(self, counts, exposure_s, mask=None):
            denoised = super().denoise(counts, exposure_s, mask)
            denoised.rate[(counts == 7) | (counts[:, :1, :1] == 8)] = np.nan
            return denoised

    flagged = np.full(SHAPE, 1, np.uint16)
    flagged[3, 4] = 2**16 - 1
    some = flagged.copy()
    some[5, 5:8] = 7
    frames = iter([flagged, some, np.full(SHAPE, 8, np.uint16)])
    RE(bp.count([Camera(name="det", func=lambda: next(frames))], 3))
    router = DenoiseRouter(settings(), Blind())
    derived = DocumentCollector()
    router.subscribe(derived)
    router.feed(raw.documents)
    assert values(derived, "denoise_ok") == [True, False, False]
    assert values(derived, "denoise_reason") == [
        "",
        "det_image: the denoiser gave no number for 3 valid pixels",
        f"det_image: the denoiser gave no number for {np.prod(SHAPE)} valid pixels",
    ]


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
    router("resource", {"uid": "u", "run_start": "unknown"})
    assert not router._run_of
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


def test_a_run_that_cannot_be_ended_costs_no_other_its_end(RE, raw, monkeypatch, logged):
    first, second = (RE(bp.count([Camera(name="det", func=poisson())], 1))[0] for _ in range(2))
    router, derived = DenoiseRouter(settings(), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    router.feed(item for item in raw.documents if item[0] != "stop")
    monkeypatch.setattr(router._runs[first], "close", None)
    router.close()
    (stop,) = derived.by_name["stop"]
    (start,) = (doc for doc in derived.by_name["start"] if doc["uid"] == stop["run_start"])
    assert start["original_run_uid"] == second
    assert f"Run {first:.8} could not be ended" in logged()
    assert not router._run_of


@pytest.mark.parametrize("others", [0, 1])
def test_events_of_a_configuration_that_cannot_be_denoised_are_there_with_the_reason(
    RE, raw, build, others
):
    _, derived = build()
    det = Camera(name="det", func=poisson())
    detectors = [det, Camera(name="other", func=poisson(1))][: 1 + others]

    @bpp.run_decorator()
    def plan():
        for exposure_s in (1.0, 0.0, 0.5):
            det.cam_acquire_time.sim_set_func(lambda exposure_s=exposure_s: exposure_s)
            det.cam_acquire_time.trigger()
            yield from bps.configure(det, {})
            for _ in range(2):
                yield from bps.trigger_and_read(detectors)

    RE(plan())
    assert len(raw.by_name["descriptor"]) == 3
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5, 6]
    assert values(derived, "denoise_ok") == [True, True, False, False, True, True]
    reason = values(derived, "denoise_reason")[2]
    assert reason.startswith("det_image: No exposure time for 'det_image'")
    exposures = values(derived, "det_image_exposure_s")
    np.testing.assert_array_equal(exposures, [1.0, 1.0, np.nan, np.nan, 0.5, 0.5])
    frames = rates(derived, "det_image")
    assert [np.isnan(frame).all() for frame in frames] == [False, False, True, True, False, False]
    if others:
        assert np.isfinite(rates(derived, "other_image")).all()
    stop = derived.by_name["stop"][0]
    assert stop["exit_status"] == "fail"
    assert stop["reason"].startswith("No exposure time for 'det_image'")


def test_validating_helpers_would_see_a_lost_event(RE, raw, build):
    _, derived = build(frames_directory=None)
    RE(bp.count([Camera(name="det", func=poisson())], 3))
    lost = [item for item in derived.documents if item != ("event", by_stream(derived)[1])]
    with pytest.raises(AssertionError, match="seq_num 3; expected 2"):
        validate_documents(lost)


def test_numbers_go_on_where_no_file_can_be_made(RE, raw, build, tmp_path):
    _, derived = build(rois={"spot": ROI(rows=(4, 12), cols=(4, 12), background_px=2)})
    (tmp_path / "denoised").touch()  # as a disk that is away
    RE(bp.count([Camera(name="det", func=poisson())], 3))
    assert "det_image" not in derived.by_name["descriptor"][0]["data_keys"]
    assert values(derived, "denoise_ok") == [False] * 3
    reasons = values(derived, "denoise_reason")
    assert all("the frames could not be saved in" in reason for reason in reasons)
    assert np.isfinite(values(derived, "spot_intensity")).all()
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 3}


@pytest.mark.parametrize("room_bytes", [0, 100])
def test_a_file_that_cannot_be_begun_leaves_nothing(tmp_path, room_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^File too large$"):
            FrameStore(tmp_path / "a.h5", {"det": (16, 20)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    FrameStore(tmp_path / "a.h5", {"det": (16, 20)}, {}).close()
    with pytest.raises(FileExistsError):
        FrameStore(tmp_path / "a.h5", {"det": (16, 20)}, {})
    assert (tmp_path / "a.h5").stat().st_size > 0


@pytest.mark.parametrize("full_at", [[3], [3, 4, 5]], ids=["for a moment", "to the end"])
def test_a_disk_that_is_full_costs_the_frames_of_that_time_and_shifts_none(
    RE, raw, build, tmp_path, caplog, full_at
):
    shape = (200, 200)
    _, derived = build(exposure_s=1.0)
    levels = itertools.count(1)
    det = PlainImage(name="det", func=lambda: np.full(shape, next(levels), np.uint32))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @bpp.run_decorator()
    def plan():
        for number in range(6):
            if number in full_at:
                (path,) = (tmp_path / "denoised").rglob("*.h5")
                full = path.stat().st_size + 1000
                resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
            try:
                yield from bps.trigger_and_read([det])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    RE(plan())
    assert values(derived, "raw_seq_num") == [1, 2, 3, 4, 5, 6]
    assert values(derived, "denoise_ok") == [number not in full_at for number in range(6)]
    assert derived.by_name["stream_datum"][-1]["seq_nums"]["stop"] == 7  # each has its place
    told = [record for record in caplog.records if "could not be saved" in record.getMessage()]
    assert len(told) == sum(
        number - 1 not in full_at for number in full_at
    )  # once, while it is full
    assert "'det' could not be saved in " in values(derived, "denoise_reason")[3]
    assert values(derived, "denoise_reason")[3].endswith("File too large")
    taken = [np.mean(event["data"]["det"]) for event in raw.by_name["event"]]
    for number in full_at:
        taken[number] = np.nan
    np.testing.assert_array_equal([frame.mean() for frame in rates(derived, "det")], taken)
    assert derived.by_name["stop"][0]["exit_status"] == "success"
