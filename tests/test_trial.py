"""Settings tried on archived runs, by `try_settings` and the command `check`."""

import time

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from live_path import UNIT, Camera, poisson
from ophyd.sim import det as point_detector
from ophyd.sim import motor

from bluesky_denoise import trial
from bluesky_denoise.errors import DenoiseError
from bluesky_denoise.runs import row_denoiser
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.trial import try_settings


def _run(RE, tiled, func, num=4, exposure_s=0.5):
    RE.subscribe(TiledWriter(tiled.client))
    (uid,) = RE(bp.scan([Camera(name="det", func=func, exposure_s=exposure_s)], motor, -1, 1, num))
    return tiled.client[uid]


def test_what_settings_make_of_the_first_frames_is_told_and_nothing_is_written(RE, tiled, tmp_path):
    func = poisson(shape=(32, 40))
    run = _run(RE, tiled, func)
    mask = np.zeros((32, 40), bool)
    mask[:, :4] = True
    settings = DenoiseSettings(
        model=UNIT,
        mask=mask,
        rois={"spot": {"rows": (8, 16), "cols": (10, 20)}},
        frames_directory=tmp_path / "denoised",
    )
    (stream,) = try_settings(run, settings, 2)
    assert stream.name == "primary"
    assert [event["raw_seq_num"] for event in stream.events] == [1, 2]
    assert stream.not_ok == []
    assert 0 < stream.seconds < 10
    stop = run.metadata["stop"]
    assert stream.pace_s == pytest.approx((stop["time"] - run.metadata["start"]["time"]) / 4)
    (frames,) = stream.frames
    assert frames.name == "det_image"
    assert frames.shape == (32, 40)
    assert (frames.exposure.key, frames.exposure_s) == ("det_cam_acquire_time", 0.5)
    assert frames.masked == pytest.approx(0.1)
    assert frames.counts == pytest.approx(np.mean(func.taken[:2], where=~mask))
    raw_sum = func.taken[0][8:16, 10:20].sum() / 0.5
    assert stream.events[0]["spot_raw_sum"] == pytest.approx(raw_sum)
    assert list(run) == ["primary"]
    assert not (tmp_path / "denoised").exists()


def test_frames_that_cannot_be_denoised_are_told_with_the_reason(RE, tiled):
    frames = iter([np.full((32, 40), value) for value in (3, -3, 3)])
    run = _run(RE, tiled, lambda: next(frames), num=3)
    (stream,) = try_settings(run, DenoiseSettings(), 3)
    assert [number for number, reason in stream.not_ok if "negative" in reason] == [2]
    assert stream.frames[0].counts == pytest.approx(3)  # of those that can


def test_a_run_that_cannot_be_denoised_at_all_is_refused_with_the_reason(RE, tiled):
    run = _run(RE, tiled, poisson(shape=(32, 40)), exposure_s=0.0)
    with pytest.raises(DenoiseError, match="cannot be denoised: No exposure time for 'det_image'"):
        try_settings(run, DenoiseSettings(), denoiser=UnitDenoiser())


def test_the_time_of_the_audit_is_told_apart(RE, tiled, monkeypatch):
    run = _run(RE, tiled, poisson(shape=(64, 64)))

    def slow(*args):
        time.sleep(0.3)
        return audit(*args)

    audit = row_denoiser.audit
    monkeypatch.setattr(row_denoiser, "audit", slow)
    (audited,) = try_settings(run, DenoiseSettings(threads=1))
    assert audited.audit_seconds > 0.1
    assert {event["denoise_audit"] for event in audited.events} == {"passed"}
    (plain,) = try_settings(run, DenoiseSettings(threads=1, audit=False))
    assert plain.audit_seconds == 0 < plain.seconds
    assert {event["denoise_audit"] for event in plain.events} == {"none"}


def test_the_first_use_of_a_network_is_not_counted(RE, tiled, monkeypatch):
    run, network = _run(RE, tiled, poisson(shape=(32, 40)), 1), UnitDenoiser(delay_s=0.2)
    denoise = network.denoise

    def slow_once(*args, **kwargs):
        result = denoise(*args, **kwargs)
        network.delay_s = 0
        return result

    monkeypatch.setattr(network, "denoise", slow_once)
    (stream,) = try_settings(run, DenoiseSettings(audit=False), 1, denoiser=network)
    assert stream.seconds < 0.2


def test_check_tries_settings_on_the_newest_run_with_frames(command, uid, RE, tmp_path):
    RE(bp.count([point_detector]))  # has no frames
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "settings.yaml").write_text(
        f"{settings}rois:\n  spot: {{rows: [8, 16], cols: [10, 20]}}\n"
    )
    said = command("check", "settings.yaml")
    assert f"Run {uid[:8]} (1 scan) of " in said
    assert "nothing is written" in said
    assert "primary: 3 events" in said
    assert "0.5 s (det_cam_acquire_time)" in said
    assert "spot, counts / s" in said
    assert "All frames are ok." in said
    assert "in this run there was one each" in said
    assert not (tmp_path / "denoised").exists()
    assert "1 events" in command("check", "settings.yaml", uid[:8], "-n", "1")


def test_check_fails_where_settings_do_not_fit(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    np.save(tmp_path / "mask.npy", np.zeros((30, 40), bool))
    (tmp_path / "mask.yaml").write_text(f"{settings}mask: mask.npy\n")
    said = command("check", "mask.yaml", code=1)
    assert f"Run {uid} cannot be denoised: The mask of 'det_image' has shape (30, 40)" in said
    (tmp_path / "other.yaml").write_text(f"{settings}streams: [nowhere_taken]\n")
    assert "None of the newest 20 runs has frames in nowhere_taken" in command(
        "check", "other.yaml", code=1
    )


def test_check_says_what_denoises(command, uid, tmp_path):
    settings = (tmp_path / "settings.yaml").read_text()
    shipped = settings.replace(UNIT, "default") + "device: cpu\nthreads: 1\n"
    (tmp_path / "shipped.yaml").write_text(shipped)
    said = command("check", "shipped.yaml")
    assert "Network default (" in said
    assert " on cpu, threads: 1\n" in said


def test_check_says_that_a_detector_is_too_fast(command, uid, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "_pace_s", lambda run, stream: 0.01)
    settings = (tmp_path / "settings.yaml").read_text()
    (tmp_path / "slow.yaml").write_text(settings.replace(UNIT, "child_denoisers:Slow"))
    said = command("check", "slow.yaml")
    assert "too slow" in said
    assert "catch-up" in said
