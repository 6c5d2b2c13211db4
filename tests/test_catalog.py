import bluesky.plans as bp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, poisson
from ophyd.sim import det as point_detector
from ophyd.sim import motor

from bluesky_denoise import DenoiseSettings, denoised_streams, reprocess
from bluesky_denoise.catalog import is_complete
from bluesky_denoise.errors import DenoiseError, TiledUnavailable
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import AreaDetectorReplay, ReplayDetector


@pytest.fixture
def settings(tiled, tmp_path):
    return DenoiseSettings(model=UNIT, tiled_uri=tiled.uri, frames_directory=tmp_path / "denoised")


@pytest.fixture
def camera():
    return Camera(name="det", func=poisson(), exposure_s=0.5)


def archived(RE, tiled, detector, number=4):
    """Scan with the raw writer only, and return the run."""
    token = RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.scan([detector], motor, -1, 1, number))
    RE.unsubscribe(token)
    return tiled.client[uid]


def test_streams_of_both_layouts_are_listed_newest_first(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    assert denoised_streams(run) == []
    uids = [
        reprocess(run, settings),
        reprocess(run, settings.model_copy(update={"tiled_layout": "run"})),
        reprocess(run, settings),
    ]
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
    reprocess(run, settings, progress=done.append)
    assert done == [1, 2, 3, 4]
    stream = denoised_streams(run)[0].stream
    np.testing.assert_allclose(stream["det_image"].read().reshape(counts.shape), counts)
    np.testing.assert_allclose(stream.read()["motor"], [-1, -1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(stream.read()["time"], run["primary"].read()["time"])


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


def test_databroker_shows_the_denoised_stream_beside_the_raw_one(RE, tiled, camera, settings):
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
