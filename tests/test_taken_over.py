import bluesky.plans as bp
import h5py
import numpy as np
import pandas as pd
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import Camera, archived, paused_scan, poisson
from tiers import thorough
from tiled.client import from_uri

from bluesky_denoise import denoised_streams, reprocess
from bluesky_denoise.catalog import is_complete
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.in_tiled.archive import archived_documents
from bluesky_denoise.nexus import export_nexus
from bluesky_denoise.reprocessing import StoredResults, has_result
from bluesky_denoise.roi import ROI
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.tiled_sink import TiledSink
from bluesky_denoise.views.picture import draw_event


def skipped(run, settings, denoiser, numbers):
    """Denoise a run as beside a scan that was too fast for some of its frames."""
    router, sink = DenoiseRouter(settings, denoiser), TiledSink(settings)
    router.subscribe(sink)
    for name, doc in archived_documents(run):
        lost = name == "event" and doc["seq_num"] in numbers
        router.accept(name, doc, skipped="the queue was full" if lost else "")
        router.flush()
    assert sink.close() == []
    return router.provenance


def audited():
    denoiser = UnitDenoiser()
    denoiser.card = {"claims": "something"}  # so that it is audited
    return denoiser


@pytest.mark.parametrize("save_sigma", [thorough(False), True])
def test_only_the_frames_that_lack_are_denoised_and_the_others_stay_as_they_are(
    RE, tiled, camera, settings, save_sigma
):
    spot = ROI(rows=(4, 12), cols=(4, 14), background_px=2)
    settings = settings.model_copy(update={"save_sigma": save_sigma, "rois": {"*": {"spot": spot}}})
    run = archived(RE, tiled, camera, 5)
    provenance = skipped(run, settings, audited(), {2, 4})
    known = StoredResults(run, provenance)
    assert (len(known), known.seq_nums("primary")) == (3, {1, 3, 5})
    assert not is_complete(run)
    denoiser, progress = audited(), []
    denoiser.denoise = whole_frames = Counted(denoiser.denoise)
    reprocess(
        *(run, settings),
        denoiser=denoiser,
        known=known,
        progress=lambda done, total: progress.append(f"{done}/{total}"),
    )
    assert progress == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    raw = run["primary"]["det_image"].read()
    assert whole_frames.seen == [raw[1].sum(), raw[3].sum()]
    assert is_complete(run)
    new, old = (found.stream for found in denoised_streams(run))
    np.testing.assert_allclose(new["det_image"].read(), raw / 0.5)
    if save_sigma:
        np.testing.assert_allclose(new["det_image_sigma"].read(), np.sqrt(raw) / 0.5, rtol=2**-13)
    columns = new.base["internal"].read().drop(columns="latency_s")
    before = old.base["internal"].read()[columns.columns]
    stamps = [key for key in columns if key.startswith("ts_")]
    taken = [0, 2, 4]
    pd.testing.assert_frame_equal(
        columns.drop(columns=stamps).iloc[taken], before.drop(columns=stamps).iloc[taken]
    )
    assert "none" not in set(columns["denoise_audit"])
    assert columns["spot_intensity"].notna().all()


class Counted:
    """Notes the photons of each frame that is denoised whole, neither thinned nor cut out."""

    def __init__(self, denoise):
        self._denoise, self.seen = denoise, []

    def __call__(self, counts, exposure_s, mask=None):
        if np.shape(counts)[1:] == (16, 20) and np.all(np.asarray(exposure_s) == 0.5):
            self.seen.append(np.sum(counts))
        return self._denoise(counts, exposure_s, mask)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("keys", "save_sigma"), [(("cam_sigma_image",), False), (("cam", "cam_sigma"), True)]
)
def test_frames_of_a_detector_that_is_called_as_errors_are_taken_over_and_exported(
    RE, tiled, settings, tmp_path, caplog, keys, save_sigma
):
    settings = settings.model_copy(update={"save_sigma": save_sigma})
    cameras = [Camera(name=f"det{i}", func=poisson(i)) for i in range(len(keys))]
    for camera, key in zip(cameras, keys, strict=True):
        camera.image.name = key
    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.count(cameras, 3))
    RE.unsubscribe(token)
    run = tiled.client[uid]
    provenance = skipped(run, settings, UnitDenoiser(), {2})
    reprocess(run, settings, known=StoredResults(run, provenance))
    found = denoised_streams(run)[0]
    assert is_complete(run)
    path = export_nexus(run, found, tmp_path / "run.nxs")
    draw_event(run, found, 3, tmp_path / "event.png")
    with h5py.File(path) as file:
        for key in keys:
            raw = run["primary"][key].read()
            np.testing.assert_allclose(found.stream[key].read(), raw / 0.5)
            np.testing.assert_allclose(file[f"entry/{key}_denoised/rate"], raw / 0.5)
            has_errors = save_sigma and f"{key}_sigma" not in keys
            assert ("rate_errors" in file[f"entry/{key}_denoised"]) == has_errors
    assert ("'cam_sigma' of 'denoised' are frames" in caplog.text) == (
        save_sigma and "cam_sigma" in keys
    )


def test_results_of_other_weights_or_settings_are_not_taken_over(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    provenance = skipped(run, settings, UnitDenoiser(), {2})
    assert len(StoredResults(run, provenance)) == 3
    assert len(StoredResults(run, provenance, ("dark",))) == 0
    assert not StoredResults(run, {**provenance, "weights_sha256": "1" * 64})
    other = {**provenance["settings"], "exposure_s": 7.0}
    assert not StoredResults(run, {**provenance, "settings": other})


@pytest.mark.thorough
def test_what_spoke_against_an_earlier_result_is_taken_over(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera, 2)
    known = StoredResults(run, skipped(run, settings, audited(), {2}))
    assert known.read("primary", 1).audits == {"det_image": True}
    assert known.read("primary", 1).problems == []
    _, row, _ = known._rows["primary", 1]
    row |= {"denoise_audit": "failed", "denoise_reason": "brighter than is expected"}
    assert known.read("primary", 1).audits == {"det_image": False}
    assert known.read("primary", 1).problems == ["brighter than is expected"]


@pytest.mark.thorough
def test_an_earlier_result_whose_file_is_gone_says_what_to_do(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    known = StoredResults(run, skipped(run, settings, UnitDenoiser(), {2}))
    (path,) = settings.frames_directory.rglob("*.h5")
    path.unlink()
    what_to_do = "`bluesky-denoise reprocess --again`, or in Python `reprocess` without `known`"
    told = (
        rf"Event 1 was .* it may not read {path.parent} \(`read.* not there, .* again: {what_to_do}"
    )
    with pytest.raises(DenoiseError, match=told) as error:
        reprocess(run, settings, denoiser=UnitDenoiser(), known=known)
    assert "http://" not in str(error.value)


@pytest.mark.thorough
def test_an_earlier_result_that_no_server_gives_says_why(RE, tiled, camera, settings):
    run = archived(RE, tiled, camera)
    provenance = skipped(run, settings, UnitDenoiser(), {2})
    client = from_uri(tiled.uri)
    known = StoredResults(client[run.metadata["start"]["uid"]], provenance)
    client.context.close()
    with pytest.raises(DenoiseError, match=r"Event 1 was .* any more: RuntimeError: Cannot send"):
        known.read("primary", 1)


def test_a_point_that_was_taken_again_when_the_denoiser_was_dead_gets_its_own_frame(
    RE, tiled, settings
):
    func = poisson()
    token = RE.subscribe(TiledWriter(tiled.client))
    (uid,) = paused_scan(RE, [Camera(name="det", func=func, exposure_s=0.5)])
    RE.unsubscribe(token)
    run = tiled.client[uid]
    router, sink = DenoiseRouter(settings, UnitDenoiser()), TiledSink(settings)
    router.subscribe(sink)
    router.feed(list(archived_documents(run))[:4])  # up to the pause after the second point
    router.close()
    assert sink.close() == []
    known = StoredResults(run, router.provenance)
    assert known.seq_nums("primary") == {1}
    reprocess(run, settings, known=known)
    frames = denoised_streams(run)[0].stream["det_image"].read()
    np.testing.assert_array_equal(frames, np.stack(func.taken[-4:]) * 2)


@pytest.mark.thorough
def test_a_frame_that_cannot_be_denoised_is_tried_again_once(RE, tiled, settings):
    frames = np.random.default_rng(0).poisson(3.0, (3, 64, 64)).astype(np.int32)
    frames[1, 10, 10] = -1
    camera = Camera(name="det", func=iter(frames).__next__, exposure_s=0.5)
    run = archived(RE, tiled, camera, 3)
    settings = settings.model_copy(update={"model": "default", "device": "cpu", "threads": 1})
    provenance = skipped(run, settings, None, set())
    (beside,) = denoised_streams(run)
    assert list(beside.stream["denoise_ok"].read()) == [True, False, True]
    assert not is_complete(run)
    reprocess(run, settings, known=StoredResults(run, provenance))
    newest = denoised_streams(run)[0]
    assert list(newest.stream["denoise_ok"].read()) == [True, False, True]
    assert is_complete(run)
    assert has_result(run, provenance) == "denoised_2"
