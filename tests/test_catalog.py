import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import httpx
import numpy as np
import pandas as pd
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, archived, paused_scan, poisson
from ophyd.sim import det as point_detector
from ophyd.sim import motor
from tiled.client import from_context

from bluesky_denoise import DenoiseSettings, denoised_streams, reprocess
from bluesky_denoise.catalog import has_frames, is_complete
from bluesky_denoise.errors import DenoiseError, SettingsError, TiledUnavailable
from bluesky_denoise.in_tiled.archive import ArchivedStream
from bluesky_denoise.nexus import export_nexus
from bluesky_denoise.reprocessing import StoredResults, has_result
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.runs.frame_store import FrameStore
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector
from bluesky_denoise.testing import UnitDenoiser


def test_streams_of_both_layouts_are_listed_newest_first(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    assert denoised_streams(run) == []
    uids = [
        reprocess(run, settings),
        reprocess(run, settings.model_copy(update={"tiled_layout": "run"})),
        reprocess(run, settings),
    ]
    with pytest.raises(DenoiseError, match="holds no frames in denoised"):  # no raw stream
        reprocess(run, settings.model_copy(update={"streams": ("denoised",)}))
    found = denoised_streams(run)
    assert [stream.run_uid for stream in found] == uids[::-1]
    assert [stream.name for stream in found] == ["denoised_2", "denoised", "denoised"]
    for stream in found:
        assert (stream.model, stream.exit_status, stream.num_events) == ("unit", "success", 4)
        assert stream.weights_sha256 == "0" * 64
        np.testing.assert_allclose(
            stream.stream["det_image"].read(), run["primary"]["det_image"].read() / 0.5
        )


@pytest.mark.parametrize("kind", ["inline", "files"])
def test_an_archived_run_gives_the_same_frames_however_they_were_carried(
    RE, tiled, settings, tmp_path, kind
):
    counts = np.random.default_rng(0).poisson(3.0, (4, 16, 20))
    frames = ReplayFrames(counts, 1.0)
    detector = (
        ReplayDetector(name="det", frames=frames)
        if kind == "inline"
        else AreaDetectorReplay(name="det", frames=frames, directory=tmp_path / "raw")
    )
    run = archived(RE, tiled, detector)
    done = []
    reprocess(run, settings, progress=lambda *steps: done.append(steps))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    stream = denoised_streams(run)[0].stream
    np.testing.assert_allclose(stream["det_image"].read().reshape(counts.shape), counts)
    np.testing.assert_allclose(stream.read()["motor"], [-1, -1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(stream.read()["time"], run["primary"].read()["time"])


def test_a_stream_without_events_does_not_make_a_run_complete(RE, tiled, camera):
    @bpp.run_decorator()
    def plan():
        yield from bps.declare_stream(camera, name="dark")
        yield from bps.trigger_and_read([camera])

    RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(plan())
    run = tiled.client[uid]
    assert not is_complete(run, ("dark", "primary"))
    assert is_complete(run, ("dark",))
    assert not is_complete(run, data_keys=("det",))
    assert is_complete(run, data_keys=("other",))


def test_small_frames_are_to_be_denoised_where_they_are_named(RE, tiled):
    run = archived(RE, tiled, Camera(name="strip", func=poisson(shape=(1, 40))), 1)
    assert is_complete(run)
    assert not is_complete(run, data_keys=("strip_image",))


def test_a_run_with_a_point_that_was_taken_again_is_denoised_whole(RE, tiled, settings):
    func = poisson()
    camera = Camera(name="det", func=func, exposure_s=0.5)
    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = paused_scan(RE, [camera])
    RE.unsubscribe(token)
    run = tiled.client[uid]
    reprocess(run, settings)
    (found,) = denoised_streams(run)
    np.testing.assert_array_equal(found.stream["raw_seq_num"].read(), [1, 2, 2, 3])
    np.testing.assert_array_equal(found.stream["det_image"].read(), np.stack(func.taken[-4:]) * 2)
    assert is_complete(run)
    assert has_result(run, found.provenance) == "denoised"
    assert StoredResults(run, found.provenance).seq_nums("primary") == {1, 3}
    going_on = type("GoingOn", (dict,), {"metadata": {"start": run.metadata["start"]}})(run)
    later = np.array([1, 2, 2, 2, 3, 6])  # than what Tiled has yet
    np.testing.assert_array_equal(
        ArchivedStream(going_on, "primary").rows_of(later, 7), [0, 1, 2, 4, 3, 6]
    )
    with pytest.raises(DenoiseError, match=r"has 4 raw frames, and frame 5 is denoised"):
        ArchivedStream(run, "primary").rows_of(np.array([1, 2, 2, 3, 4]), 4)


@pytest.mark.thorough
def test_a_raw_row_that_was_written_twice_as_an_answer_was_lost_shifts_no_frame(
    RE, tiled, settings, camera
):
    client = from_context(tiled.client.context)
    send, answers = client.context.http_client.send, iter(["", "lost"])

    def lose_an_answer(request, **kwargs):
        response = send(request, **kwargs)
        if request.method == "PATCH" and "/table/" in request.url.path and next(answers, ""):
            raise httpx.ReadError("the answer was lost", request=request)
        return response

    client.context.http_client.send = lose_an_answer
    RE.subscribe(TiledWriter(client, batch_size=1))
    (uid,) = RE(bp.scan([camera], motor, 1, 4, 4))
    client.context.http_client.send = send
    run = tiled.client[uid]
    assert list(run["primary"]["motor"].read()) == [1, 2, 2, 3, 4]
    reprocess(run, settings)
    (found,) = denoised_streams(run)
    np.testing.assert_array_equal(found.stream["motor"].read(), [1, 2, 3, 4])
    np.testing.assert_array_equal(
        found.stream["det_image"].read(), run["primary"]["det_image"].read() * 2
    )
    np.testing.assert_array_equal(
        ArchivedStream(run, "primary").rows_of(np.arange(1, 5), 4), [0, 1, 2, 3]
    )


def test_an_exposure_that_was_configured_during_the_run_is_that_of_the_later_frames(
    RE, tiled, settings
):
    counts = np.random.default_rng(1).poisson(5.0, (6, 16, 20)).astype(np.uint16)
    camera = ReplayDetector(name="det", frames=ReplayFrames(counts, 1.0), exposure_s=1.0)

    @bpp.run_decorator()
    def plan():
        for exposure_s in (1.0, 2.0, 4.0):
            yield from bps.configure(camera, {"cam.acquire_time": exposure_s})
            for _ in range(2):
                yield from bps.trigger_and_read([camera])

    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(plan())
    RE.unsubscribe(token)
    run = tiled.client[uid]
    reprocess(run, settings)
    (found,) = denoised_streams(run)
    exposures = found.stream["det_image_exposure_s"].read()
    np.testing.assert_array_equal(exposures, [1, 1, 2, 2, 4, 4])
    raw = run["primary"]["det_image"].read().reshape(6, 16, 20)
    rates = found.stream["det_image"].read().reshape(6, 16, 20)
    np.testing.assert_allclose(rates, raw / np.array([1, 1, 2, 2, 4, 4])[:, None, None])


@pytest.mark.thorough
def test_a_run_of_which_tiled_lacks_an_event_is_denoised_once(RE, raw, tiled, settings, camera):
    (uid,) = RE(bp.count([camera], 3))
    write = TiledWriter(tiled.client)
    for name, doc in raw.documents:
        if name != "event" or doc["seq_num"] != 3:
            write(name, doc)
    run = tiled.client[uid]
    assert run.metadata["stop"]["num_events"] == {"primary": 3}
    assert not is_complete(run)
    reprocess(run, settings)
    assert denoised_streams(run)[0].num_events == 2
    assert is_complete(run)
    assert has_result(run, DenoiseRouter(settings).provenance) == "denoised"


@pytest.mark.thorough
def test_a_run_that_is_held_since_before_its_end_is_denoised_to_its_end(
    RE, raw, tiled, settings, camera
):
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    held = []

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([camera])
        held.append(tiled.client[raw.by_name["start"][0]["uid"]])
        with pytest.raises(DenoiseError, match="no end in Tiled; the 1 events that are there are"):
            reprocess(held[0], settings)
        yield from bps.trigger_and_read([camera])

    RE(plan())
    assert not is_complete(held[0])
    reprocess(held[0], settings)
    assert denoised_streams(held[0])[0].num_events == 2


@pytest.mark.thorough
def test_a_run_without_an_end_has_its_result_until_more_of_it_comes(
    RE, raw, tiled, settings, camera
):
    RE(bp.count([camera], 3))
    (uid,) = [doc["uid"] for doc in raw.by_name["start"]]
    write, documents = TiledWriter(tiled.client, batch_size=1), iter(raw.documents)
    provenance = DenoiseRouter(settings).provenance
    for number in (2, 3):
        for name, doc in documents:
            write(name, doc)
            if doc.get("seq_num") == number:
                break
        run = tiled.client[uid]
        assert has_result(run, provenance) == ""
        with pytest.raises(DenoiseError, match=f"the {number} events that are there are denoised"):
            reprocess(run, settings, known=StoredResults(run, provenance))
        assert has_result(run, provenance) == denoised_streams(run)[0].name
    write(*next(documents))
    assert has_result(run, provenance) == ""
    reprocess(run, settings, known=StoredResults(run, provenance))
    assert has_result(run, provenance) == "denoised_3"
    assert [found.num_events for found in denoised_streams(run)] == [3, 3, 2]


def test_a_raw_stream_with_a_number_is_not_taken_for_another(RE, tiled, settings, camera):
    @bpp.run_decorator()
    def plan():
        for stream in ("dark", "dark_1"):
            for _ in range(2):
                yield from bps.trigger_and_read([camera], stream)

    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(plan())
    RE.unsubscribe(token)
    run = tiled.client[uid]
    reprocess(run, settings.model_copy(update={"streams": ("dark_1",)}))
    (found,) = denoised_streams(run)
    assert found.raw_stream == "dark_1"
    assert not is_complete(run, ("dark",))
    assert is_complete(run, ("dark_1",))
    assert has_result(run, found.provenance, ("dark_1",)) == "denoised_dark_1"
    assert has_result(run, found.provenance, ("dark",)) == ""


def test_a_run_that_failed_the_audit_needs_no_more_denoising_and_one_with_gaps_does(
    RE, tiled, settings
):
    frames = np.random.default_rng(0).poisson(3.0, (2, 64, 64))
    frames[1, 10, 10] = 5000
    run = archived(RE, tiled, ReplayDetector(name="det", frames=ReplayFrames(frames, 1.0)), 2)
    assert not is_complete(run)
    wrong_shape = {"det_image": np.zeros((8, 8))}
    with pytest.raises(DenoiseError, match="mask"):
        reprocess(run, settings.model_copy(update={"mask": wrong_shape}))
    assert not is_complete(run)
    options = {"model": "default", "device": "cpu", "threads": 1}
    reprocess(run, settings.model_copy(update=options))
    stream = denoised_streams(run)[0].stream
    assert list(stream["denoise_audit"].read()) == ["passed", "failed"]
    assert list(stream["denoise_ok"].read()) == [True, False]
    assert is_complete(run)


@pytest.mark.parametrize("reason", ["no more liquid nitrogen", "shut; the door; "])
def test_a_run_whose_scan_failed_is_complete_once_it_is_denoised(
    RE, tiled, settings, camera, reason
):
    token = RE.subscribe(TiledWriter(tiled.client))

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([camera])
        raise RuntimeError(reason)

    with pytest.raises(RuntimeError, match=reason):
        RE(plan())
    RE.unsubscribe(token)
    run = tiled.client.values().last()
    reprocess(run, settings)
    (found,) = denoised_streams(run)
    assert (found.exit_status, found.reason) == ("fail", reason.strip("; "))
    assert is_complete(run)
    assert has_result(run, DenoiseRouter(settings).provenance) == "denoised"


@pytest.mark.thorough
@pytest.mark.parametrize("reason", ["No space left", "MemoryError: no memory"])
def test_frames_that_were_lost_to_the_machine_are_tried_again(
    RE, tiled, settings, camera, monkeypatch, reason
):
    run = archived(RE, tiled, camera)
    denoiser = UnitDenoiser()
    if reason == "No space left":

        def full(self, key, rows):
            raise OSError(reason)

        monkeypatch.setattr(FrameStore, "append", full)
    else:

        def starved(*args, **kwargs):
            raise MemoryError("no memory")

        denoiser.denoise = starved
    reprocess(run, settings, denoiser=denoiser)
    (found,) = denoised_streams(run)
    assert reason in found.stream["denoise_reason"].read()[0]
    assert not is_complete(run)


def test_a_run_without_events_is_refused(RE, tiled, settings, camera):
    token = RE.subscribe(TiledWriter(tiled.client))

    @bpp.stage_decorator([camera])
    @bpp.run_decorator()
    def plan():
        yield from bps.declare_stream(camera, name="primary")

    RE(plan())
    RE.unsubscribe(token)
    run = tiled.client.values().last()
    with pytest.raises(DenoiseError, match="in primary: nothing was denoised"):
        reprocess(run, settings)
    assert denoised_streams(run) == []


def test_a_run_that_cannot_be_denoised_gets_no_stream_from_the_archive(RE, tiled, settings):
    camera = Camera(name="det", func=poisson(), exposure_s=float("nan"))
    run = archived(RE, tiled, camera)
    with pytest.raises(DenoiseError, match="No exposure time for 'det_image'"):
        reprocess(run, settings)
    assert denoised_streams(run) == []
    assert not is_complete(run)


def test_a_failed_audit_hides_neither_a_frame_of_another_detector_nor_one_that_was_not_saved():
    unsaved = "audit of a: wide; 'a' could not be saved in /data: No space left on device"
    events = pd.DataFrame(
        {
            "denoise_ok": [True, False, False, False, False],
            "denoise_audit": ["passed", "failed", "failed", "none", "failed"],
            "denoise_reason": ["", "audit of a: wide", "audit of a: wide", "", unsaved],
            "a_denoised_total": [1.0, 1.0, 1.0, 1.0, 1.0],
            "b_denoised_total": [1.0, 1.0, np.nan, np.nan, 1.0],
        }
    )
    assert list(has_frames(events)) == [True, True, False, False, False]


def test_a_result_that_would_be_nowhere_is_refused(RE, tiled, settings, camera):
    run = archived(RE, tiled, camera)
    with pytest.raises(SettingsError, match="neither `tiled_uri` nor `frames_directory`"):
        reprocess(run, DenoiseSettings(model=UNIT))


def test_a_run_without_frames_is_refused(RE, tiled, settings):
    run = archived(RE, tiled, point_detector)
    with pytest.raises(DenoiseError, match="holds no frames in primary"):
        reprocess(run, settings)


def test_a_result_that_cannot_be_written_is_kept_and_named(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    down = settings.model_copy(update={"tiled_uri": "http://127.0.0.1:9"})
    with pytest.raises(TiledUnavailable, match=r"it is in .*\.jsonl"):
        reprocess(run, down)
    assert len(list(down.backup_path.glob("*.jsonl"))) == 1


def test_what_is_no_run_is_refused():
    with pytest.raises(DenoiseError, match="list is no run; expected one from a Tiled"):
        denoised_streams([])


def test_databroker_shows_the_denoised_stream_beside_the_raw_one(
    RE, tiled, camera, settings, tmp_path
):
    from databroker import Broker
    from databroker import client as databroker_client

    run = archived(RE, tiled, camera)
    reprocess(run, settings)
    uid = run.metadata["start"]["uid"]
    expected = run["primary"]["det_image"].read() / 0.5

    assert databroker_client.CatalogOfBlueskyRuns is type(tiled.client)
    broker = Broker(tiled.client)
    table = broker[uid].table("denoised", fields=["motor", "det_image_denoised_total"])
    np.testing.assert_allclose(
        table["det_image_denoised_total"], expected.sum((1, 2), dtype=float), rtol=1e-6
    )
    assert denoised_streams(broker[uid])[0].num_events == 4

    version_1 = list(tiled.client.v1[uid].data("det_image", stream_name="denoised"))
    np.testing.assert_allclose(np.stack(version_1), expected)

    version_2 = tiled.client.v2[uid]["denoised"]["data"]
    np.testing.assert_allclose(version_2["det_image"].read(), expected)
    assert denoised_streams(tiled.client.v2[uid])[0].name == "denoised"
    # The last one is of version 2 by now.
    for older in (broker[uid], tiled.client.v2[uid], tiled.client[uid]):
        reprocess(older, settings)
        newest = denoised_streams(older)[0]
        assert newest.num_events == 4
        assert export_nexus(older, newest, tmp_path / f"{newest.name}.nxs").exists()
