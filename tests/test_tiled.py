"""Denoised streams in Tiled, written and read while scans run."""

import warnings

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import httpx
import numpy as np
import pyarrow as pa
import pytest
from bluesky_tiled_plugins import subscribe_to_streams
from live_path import SHAPE, Camera, poisson, settings, wait_for
from ophyd.sim import SynAxis
from tiers import thorough
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.client.utils import ClientError
from tiled_fixtures import FRAMES, IN_FILES, INLINE, check_documents, in_tiled

from bluesky_denoise import __version__
from bluesky_denoise.catalog import denoised_streams
from bluesky_denoise.in_tiled.layouts import explain
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.in_tiled.streams import StreamWriter
from bluesky_denoise.reprocessing import mark_interrupted, reprocess
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_async_devices import AsyncReplayDetector
from bluesky_denoise.testing import DocumentCollector, UnitDenoiser, validate_documents

# Into the raw run


@pytest.mark.parametrize("frames", [IN_FILES, thorough(INLINE)])
def test_the_denoised_stream_reads_as_primary_does(
    RE, tiled, written, into_tiled, det, motor, frames
):
    one = into_tiled(frames)
    (uid,) = RE(bp.scan([det], motor, -1, 1, 5))
    one.wait(uid)
    run = in_tiled(tiled, uid)
    raw, denoised = run["primary"], run["denoised"]
    assert raw["det_image"].shape == denoised["det_image"].shape == (5, *SHAPE)
    assert denoised["det_image"].dtype == np.float32
    np.testing.assert_array_equal(raw["det_image"].read(), FRAMES[:5])
    np.testing.assert_array_equal(denoised["det_image"].read(), FRAMES[:5] / np.float32(0.5))
    for key in ("motor", "det_stats1_total", "time"):
        np.testing.assert_array_equal(denoised[key].read(), raw[key].read())
    np.testing.assert_array_equal(denoised["raw_seq_num"].read(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(denoised["denoise_ok"].read(), [True] * 5)
    np.testing.assert_array_equal(
        denoised["det_image_raw_total"].read(), FRAMES[:5].sum(axis=(1, 2))
    )
    both = denoised.read()
    assert both["det_image"].shape == (5, *SHAPE)
    np.testing.assert_array_equal(both["motor"], raw["motor"].read())
    check_documents(run, {"primary": 5, "denoised": 5})


@pytest.mark.parametrize("frames", [IN_FILES, INLINE])
def test_documents_that_come_twice_are_written_once(RE, tiled, written, tmp_path, det, frames):
    directory = tmp_path if frames == IN_FILES else None
    router = DenoiseRouter(settings(frames_directory=directory), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([det], 3))
    del derived.by_name["event"][-1]["data"]["det_stats1_total"]  # as where its event was lost
    writer = StreamWriter(tiled.client)
    writer.write(derived.documents[:-1])
    writer.write(derived.documents)
    StreamWriter(tiled.client).write(derived.documents * 2)
    denoised = in_tiled(tiled, uid)["denoised"]
    np.testing.assert_array_equal(denoised["det_image"].read(), FRAMES[:3] / np.float32(0.5))
    np.testing.assert_array_equal(denoised["raw_seq_num"].read(), [1, 2, 3])
    totals = [*FRAMES[:2].sum(axis=(1, 2)), np.nan]
    np.testing.assert_array_equal(denoised["det_stats1_total"].read(), totals)


def test_a_row_that_tiled_has_twice_hides_none_that_come_later(RE, tiled, written, det):
    """As where a server that hung takes what was sent first and what was sent again."""
    router, derived = DenoiseRouter(settings(), UnitDenoiser()), DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([det], 2))
    StreamWriter(tiled.client).write(derived.documents[:-2])
    stream = in_tiled(tiled, uid)["denoised"].base
    row = stream["internal"].read()
    stream["internal"].append_partition(0, pa.Table.from_pandas(row, preserve_index=False))
    StreamWriter(tiled.client).write(derived.documents)
    assert list(StoredStream(stream).read_table()["raw_seq_num"]) == [1, 2]
    assert in_tiled(tiled, uid)["denoised"].metadata["denoise"]["num_events"] == 2


def test_inline_frames_whose_pixels_never_arrived_are_sent_again_in_pieces_that_a_proxy_takes(
    RE, tiled, written, det, monkeypatch
):
    router = DenoiseRouter(settings(frames_directory=None), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    (uid,) = RE(bp.count([det], 6))
    first = next(i for i, (name, _) in enumerate(derived.documents) if name == "event")
    StreamWriter(tiled.client).write(derived.documents[:first])
    # The array was made, of two rows, and the request with its pixels was lost.
    run = in_tiled(tiled, uid)
    run["denoised"].base.write_array(np.zeros((2, *SHAPE), np.float32), key="det_image")

    frame_bytes = 4 * FRAMES[0].size
    monkeypatch.setattr("bluesky_denoise.in_tiled.streams._PIECE_BYTES", frame_bytes // 2)
    client, sent, most = from_uri(tiled.uri), [], 0
    send = client.context.http_client.send

    def through_a_proxy(request, **kwargs):
        if request.method == "PATCH" and "/array/" in request.url.path:
            sent.append(len(request.content) // frame_bytes)
            if sent[-1] > most:
                return httpx.Response(413, request=request, text="Request Entity Too Large")
        return send(request, **kwargs)

    client.context.http_client.send = through_a_proxy
    with client.context:
        with pytest.raises(ClientError):
            StreamWriter(client).write(derived.documents)
        assert sent == [1]
        sent.clear()
        monkeypatch.setattr("bluesky_denoise.in_tiled.streams._PIECE_BYTES", 5 * frame_bytes)
        with pytest.raises(ClientError) as told:
            StreamWriter(client).write(derived.documents)
        assert sent == [4, 2, 1]
        assert "takes no request as long as one event: 413" in explain(told.value, settings())
        most = 2
        StreamWriter(client).write(derived.documents)
    assert sent == [4, 2, 1, 4, 2, 2, 2]
    denoised = in_tiled(tiled, uid)["denoised"]
    found = denoised["det_image"].read()
    np.testing.assert_array_equal(found, FRAMES[:6] / np.float32(0.5))
    np.testing.assert_array_equal(denoised["raw_seq_num"].read(), [1, 2, 3, 4, 5, 6])


def test_frames_in_files_have_the_access_tags_of_the_stream(
    RE, tiled, written, det, tmp_path, monkeypatch
):
    router = DenoiseRouter(settings(frames_directory=tmp_path), UnitDenoiser())
    derived = DocumentCollector()
    router.subscribe(derived)
    RE.subscribe(router)
    RE(bp.count([det], 1))
    given, new = [], Container.new

    def without_tags(self, *args, access_tags=None, **kwargs):  # this server has no users
        given.append((kwargs["key"], access_tags))
        return new(self, *args, **kwargs)

    monkeypatch.setattr("bluesky_denoise.in_tiled.streams.tags_of", lambda node: ["proposal"])
    monkeypatch.setattr(Container, "new", without_tags)
    StreamWriter(tiled.client).write(derived.documents)
    # In this order, so that a row that is there has its frame.
    assert given == [(key, ["proposal"]) for key in ("denoised", "det_image", "internal")]


def test_what_others_put_into_a_run_is_no_stream(RE, tiled, written, into_tiled, det):
    one = into_tiled()
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    for key in ("fit", "denoised_2"):
        in_tiled(tiled, uid).base.write_array(np.ones(3), key=key)
    run = in_tiled(tiled, uid)
    assert [found.name for found in denoised_streams(run)] == ["denoised"]
    assert mark_interrupted(run) == []
    reprocess(run, one.settings)
    assert denoised_streams(run)[0].name == "denoised_3"


def test_frames_are_found_in_directories_of_any_name(RE, tiled, written, into_tiled, det, tmp_path):
    one = into_tiled(frames_directory=tmp_path / "My Data" / "100%20 [1]" / "Grün+&;'")
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    found = in_tiled(tiled, uid)["denoised"]["det_image"].read()
    np.testing.assert_array_equal(found, FRAMES[:2] / np.float32(0.5))


def test_the_scan_stays_the_last_entry_of_the_catalog(RE, tiled, written, into_tiled, det):
    one = into_tiled()
    before = len(tiled.client)
    (uid,) = RE(bp.count([det]))
    one.wait(uid)
    assert tiled.client[-1].start["uid"] == uid
    assert len(tiled.client) == before + 1


@pytest.mark.parametrize("frames", [IN_FILES, INLINE])
def test_frames_can_be_read_while_the_scan_runs(RE, tiled, written, into_tiled, det, frames):
    one = into_tiled(frames)
    seen = []

    def read(number):
        run = in_tiled(tiled, one.derived.by_name["start"][0]["original_run_uid"])
        stream = wait_for(lambda: "denoised" in run and run["denoised"], what="the stream")
        array = wait_for(lambda: "det_image" in stream and stream["det_image"], what="the array")
        wait_for(lambda: (array.refresh() or array).shape[0] == number, what="the frame")
        seen.append(array[number - 1])
        wait_for(lambda: len(stream["raw_seq_num"].read()) == number, what="its row")

    @bpp.run_decorator()
    def plan():
        for number in (1, 2, 3):
            yield from bps.trigger_and_read([det])
            read(number)

    RE(plan())
    np.testing.assert_array_equal(seen, FRAMES[:3] / np.float32(0.5))


@pytest.mark.parametrize("frames", [IN_FILES, INLINE])
def test_a_reader_gets_the_rows_that_it_has_seen_when_more_have_come(
    RE, tiled, written, into_tiled, det, motor, frames
):
    one = into_tiled(frames)
    held = {}

    def hold():
        run = in_tiled(tiled, one.derived.by_name["start"][0]["original_run_uid"])
        seen = wait_for(
            lambda: (
                "denoised" in run
                and "denoise_ok" in run["denoised"]
                and len(run["denoised"]["denoise_ok"].read()) == 3
                and run["denoised"]
            ),
            what="three rows",
        )
        held["frames"], held["column"] = seen["det_image"], seen["raw_seq_num"]
        raw = run["primary"]
        held["raw frames"], held["raw column"] = raw["det_image"], raw["motor"]

    @bpp.run_decorator()
    def plan():
        for number in range(5):
            if number == 3:
                hold()
            yield from bps.mv(motor, number)
            yield from bps.trigger_and_read([det, motor])

    (uid,) = RE(plan())
    one.wait(uid)
    np.testing.assert_array_equal(held["column"].read(), [1, 2, 3])
    np.testing.assert_array_equal(held["column"][1:], [2, 3])
    np.testing.assert_array_equal(held["column"][-1], 3)
    np.testing.assert_array_equal(held["frames"].read(), FRAMES[:3] / np.float32(0.5))
    np.testing.assert_array_equal(held["frames"][-1], FRAMES[2] / np.float32(0.5))
    np.testing.assert_array_equal(held["frames"][1:, :8], FRAMES[1:3, :8] / np.float32(0.5))
    np.testing.assert_array_equal(held["raw column"].read(), [0, 1, 2])
    np.testing.assert_array_equal(held["raw frames"].read(), FRAMES[:3])
    anew = in_tiled(tiled, uid)["denoised"]
    np.testing.assert_array_equal(anew["raw_seq_num"].read(), range(1, 6))


@pytest.mark.parametrize("frames", [IN_FILES, thorough(INLINE)])
def test_standard_errors_read_as_the_frames_do(RE, tiled, written, into_tiled, det, frames):
    one = into_tiled(frames, save_sigma=True)
    (uid,) = RE(bp.count([det], 3))
    one.wait(uid)
    run = in_tiled(tiled, uid)
    sigma = np.sqrt(FRAMES[:3]) / np.float32(0.5)
    rtol = 2**-13 if frames == IN_FILES else 1e-6
    np.testing.assert_allclose(run["denoised"]["det_image_sigma"].read(), sigma, rtol=rtol)
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:3] * 2)
    assert set(run["denoised"].read()) >= {"det_image", "det_image_sigma"}
    check_documents(run, {"primary": 3, "denoised": 3})


def test_the_metadata_of_the_stream_tell_what_made_it_and_how_it_ended(
    RE, tiled, written, into_tiled, det
):
    one = into_tiled()
    (uid,) = RE(bp.count([det], 3))
    one.wait(uid)
    metadata = in_tiled(tiled, uid)["denoised"].metadata
    start = one.derived.by_name["start"][0]
    told = dict(metadata["denoise"])
    assert told.pop("time") == start["time"]
    assert told.pop("settings") == start["denoise"]["settings"]
    assert told == {
        "version": __version__,
        "model": "unit",
        "weights_sha256": "0" * 64,
        "device": "cpu",
        "run_uid": start["uid"],
        "raw_stream": "primary",
        "exit_status": "success",
        "reason": "",
        "num_events": 3,
    }
    assert metadata["data_keys"]["det_image"]["units"] == "counts / s"
    assert metadata["configuration"]["denoiser"]["data"]["denoiser_model"] == "unit"
    assert metadata.keys() == in_tiled(tiled, uid)["primary"].metadata.keys() | {"denoise"}


def test_the_raw_run_is_the_same_with_and_without_a_denoised_stream(
    RE, raw, tiled, written, into_tiled, det
):
    (uid,) = RE(bp.count([det], 3))

    def raw_run():
        run = in_tiled(tiled, uid)
        arrays = {key: run["primary"][key].read() for key in run["primary"]}
        nodes = [run, run["primary"], run["primary"].base["internal"]]
        return [dict(node.metadata) for node in nodes], arrays

    before = raw_run()
    one = into_tiled()
    one.router.feed(raw.documents)
    one.wait(uid)
    assert sorted(in_tiled(tiled, uid)) == ["denoised", "primary"]
    np.testing.assert_equal(raw_run(), before)


def test_a_second_model_gives_a_second_stream(RE, raw, tiled, written, into_tiled, det):
    first, second = into_tiled(), into_tiled(INLINE)
    (uid,) = RE(bp.count([det], 2))
    first.wait(uid)
    second.wait(uid)
    third = into_tiled()
    third.router.feed(raw.documents)
    third.wait(uid)
    run = in_tiled(tiled, uid)
    assert sorted(run) == ["denoised", "denoised_2", "denoised_3", "primary"]
    for key in ("denoised", "denoised_2", "denoised_3"):
        np.testing.assert_array_equal(run[key]["det_image"].read(), FRAMES[:2] * 2)
    assert (
        run["denoised_3"].metadata["denoise"]["run_uid"]
        == (third.derived.by_name["start"][0]["uid"])
    )
    check_documents(run, {"primary": 2, "denoised": 2, "denoised_2": 2, "denoised_3": 2})


def test_two_frames_per_event_stay_together_in_tiled(RE, tiled, written, into_tiled):
    taken = []

    def expose():
        taken.append(np.random.default_rng(len(taken)).poisson(5, (2, *SHAPE)).astype(np.uint32))
        return taken[-1]

    one = into_tiled()
    (uid,) = RE(bp.count([Camera(name="det", func=expose)], 3))
    one.wait(uid)
    run = in_tiled(tiled, uid)
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), np.stack(taken) * 2)
    check_documents(run, {"primary": 3, "denoised": 3})


def test_frames_of_ophyd_async_are_beside_those_of_the_detector(
    RE, tiled, written, into_tiled, tmp_path
):
    from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices

    one = into_tiled()
    with init_devices():
        pilatus = AsyncReplayDetector(
            StaticPathProvider(UUIDFilenameProvider(), tmp_path), ReplayFrames(FRAMES, 0.5)
        )
    RE(bps.mv(pilatus.driver.acquire_time, 0.5))
    (uid,) = RE(bp.scan([pilatus], SynAxis(name="motor"), 0, 1, 3))
    one.wait(uid)
    run = in_tiled(tiled, uid)
    np.testing.assert_array_equal(run["primary"]["pilatus"].read().reshape(3, *SHAPE), FRAMES[:3])
    np.testing.assert_array_equal(
        run["denoised"]["pilatus"].read().reshape(3, *SHAPE), FRAMES[:3] * 2
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run.validate(raise_on_error=True)  # mends the raw run: ophyd-async says (1, H, W)
    assert {str(w.message).split("'")[1] for w in warned} == {"primary/pilatus"}
    check_documents(run, {"primary": 3, "denoised": 3})


@pytest.mark.parametrize("layout", ["stream", "run"])
def test_two_detectors_and_two_streams_are_written(RE, tiled, written, into_tiled, layout):
    one = into_tiled(streams=["primary", "dark"], tiled_layout=layout)
    a, b = Camera(name="a", func=poisson(1)), Camera(name="b", func=poisson(2, (24, 32)))
    dark = Camera(name="dark", func=poisson(3))

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([dark], name="dark")
        for _ in range(2):
            yield from bps.trigger_and_read([a, b], name="primary")

    (uid,) = RE(plan())
    one.wait(uid)
    run = in_tiled(tiled, uid)
    raw_streams = {"primary": 2, "dark": 1}
    if layout == "run":
        check_documents(run, raw_streams)
        run = in_tiled(tiled, one.derived.by_name["start"][0]["uid"], "denoised")
        raw_streams = {}
    assert run["denoised"]["a_image"].shape == (2, *SHAPE)
    assert run["denoised"]["b_image"].shape == (2, 24, 32)
    assert run["denoised_dark"]["dark_image"].shape == (1, *SHAPE)
    check_documents(run, {**raw_streams, "denoised": 2, "denoised_dark": 1})


def test_a_run_that_could_not_be_denoised_has_a_stream_that_says_why(
    RE, tiled, written, into_tiled, det
):
    one = into_tiled()
    det.cam.acquire_time.name = "det_cam_time"  # not a name that tells an exposure
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    run = in_tiled(tiled, uid)
    told = run["denoised"].metadata["denoise"]
    assert told["exit_status"] == "fail"
    assert told["num_events"] == 0
    assert "No exposure time for 'det_image'" in told["reason"]
    assert not one.sink._looked  # at frames: those of the next run are the first
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), FRAMES[:2])


def test_a_document_of_no_run_does_not_end_the_writing(RE, tiled, written, into_tiled, det, logged):
    one = into_tiled()
    one.sink("event", {"descriptor": "of a run that never began", "seq_num": 1})
    one.sink("stop", {"uid": "b", "run_start": "nor this one"})
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    assert in_tiled(tiled, uid)["denoised"]["det_image"].shape == (2, *SHAPE)
    assert logged().count("could not be sorted in") == 2


# As runs of their own


@pytest.mark.parametrize("frames", [IN_FILES, thorough(INLINE)])
def test_a_derived_run_lies_in_a_container_of_its_own(
    RE, tiled, written, into_tiled, det, motor, frames
):
    one = into_tiled(frames, tiled_layout="run", tiled_container="derived/by model")
    (uid,) = RE(bp.scan([det], motor, -1, 1, 4))
    one.wait(uid)
    assert list(in_tiled(tiled, uid)) == ["primary"]
    run = in_tiled(tiled, one.derived.by_name["start"][0]["uid"], "derived", "by model")
    assert run.start["original_run_uid"] == uid
    assert run.start["denoise"]["model"] == "unit"
    np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:4] * 2)
    np.testing.assert_array_equal(
        run["denoised"]["motor"].read(), in_tiled(tiled, uid)["primary"]["motor"].read()
    )
    assert run.stop["exit_status"] == "success"
    check_documents(run, {"denoised": 4})


# Live


@pytest.mark.parametrize("frames", [IN_FILES, INLINE])
def test_a_live_subscription_gets_the_denoised_frames_and_numbers(
    RE, tiled, written, into_tiled, det, frames
):
    one = into_tiled(frames)
    frames_seen, rows_seen = [], []

    def collect(update):
        if update.data_keys == ("det_image",):
            frames_seen.extend(update.data())
        else:
            rows_seen.extend(update.data()["raw_seq_num"])

    with subscribe_to_streams(
        tiled.client,
        collect,
        streams={"denoised": None},
        metadata_filter=lambda start: start.get("watched") == frames,
        max_size=2**24,
    ):
        (uid,) = RE(bp.count([det], 3, md={"watched": frames}))
        one.wait(uid)
        wait_for(lambda: len(rows_seen) == 3, what="live numbers")
        wait_for(lambda: len(frames_seen) == 3, what="live frames")
    stream = in_tiled(tiled, uid)["denoised"].base
    for node in (stream, stream["internal"], stream["det_image"]):
        node.subscribe().start(0)  # returns when it is told that no more comes
    assert sorted(rows_seen) == [1, 2, 3]
    assert sorted(f.sum() for f in frames_seen) == sorted(2 * f.sum() for f in FRAMES[:3])


def test_the_helpers_see_documents_that_are_wrong(RE, raw, tiled, written, into_tiled, det):
    one = into_tiled()
    (uid,) = RE(bp.count([det], 2))
    one.wait(uid)
    with pytest.raises(AssertionError):
        check_documents(in_tiled(tiled, uid), {"primary": 2, "denoised": 3})
    with pytest.raises(AssertionError):
        validate_documents(one.derived.documents[:-1])
