"""What may fail under a scan: the end of a session, a full queue, Tiled."""

import contextlib
import json
import logging
import signal
import time
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from composed_runs import ComposedRun
from live_path import (
    SHAPE,
    Camera,
    UnchangedDocuments,
    is_whole,
    poisson,
    python_path,
    rates,
    settings,
    values,
    wait_for,
)
from ophyd import Signal
from process_fixtures import FRAMES, NOWHERE, finished, replay
from tiled.client import from_uri

from bluesky_denoise.backup import backup_files, read_backup
from bluesky_denoise.errors import DenoiseFailed, DenoiseTimeout
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector, assert_emitted, validate_documents
from bluesky_denoise.tiled_sink import replay_backup

# The end of a session


@pytest.mark.thorough
def test_what_waits_when_the_denoiser_is_closed_is_skipped_in_time(
    RE, tmp_path, logged, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", python_path())
    derived = DocumentCollector()
    options = settings(
        model="child_denoisers:Slow", frames_directory=tmp_path / "denoised", tiled_uri=None
    )
    denoise = DenoiseProcess(options)
    denoise.subscribe(derived)
    RE.subscribe(denoise)
    RE(bp.count([replay()], 100))
    began = time.monotonic()
    denoise.close(10)
    assert time.monotonic() - began < 9.5
    derived.validate()
    ok, reasons = values(derived, "denoise_ok"), values(derived, "denoise_reason")
    assert 1 <= sum(ok) < 100
    assert set(reasons) == {"", "skipped: the denoiser was closed before its turn"}
    assert derived.by_name["stop"][0]["exit_status"] == "success"
    assert "In 5 s at most, those that are left are skipped" in logged()


def test_what_to_do_about_a_run_that_is_cut_short_is_told(RE, gate, tmp_path, logged):
    options = settings(model="child_denoisers:Gated", frames_directory=tmp_path / "denoised")
    denoise = DenoiseProcess(options)
    RE.subscribe(denoise)
    (uid,) = RE(bp.count([replay()], 3))
    denoise.close(0.5)
    assert (
        f"did not finish in time and is killed; runs cut short: {uid[:8]}. `bluesky-denoise "
        "catch-up SETTINGS.yaml`, with the settings of this session, completes their denoised "
        "streams; until then they have no end" in logged()
    )
    with pytest.raises(DenoiseFailed, match=f"{uid[:8]}.*`bluesky-denoise catch-up` denoises"):
        denoise.wait(60)


@pytest.mark.thorough
def test_frames_of_a_fly_scan_that_wait_at_the_end_are_skipped_and_the_others_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", python_path())
    derived, run = DocumentCollector(), ComposedRun(tmp_path, motor=False, det=(SHAPE, "STREAM:"))
    run.files("det", run.file("long.h5", np.ones((200, *SHAPE), np.uint16)))(1, 200)
    denoise = DenoiseProcess(
        settings(
            model="child_denoisers:Slow", exposure_s=1.0, frames_directory=tmp_path / "denoised"
        )
    )
    denoise.subscribe(derived)
    for name, doc in run.ended():
        denoise(name, doc)
    wait_for(lambda: derived.by_name.get("event"))  # long before all are denoised
    denoise.close(6)
    derived.validate()
    ok, reasons = values(derived, "denoise_ok"), values(derived, "denoise_reason")
    assert len(ok) == 200
    assert 1 <= sum(ok) < 200
    assert set(reasons) == {"", "skipped: the denoiser was closed before its turn"}


# A full queue


def test_a_monitor_takes_no_room_from_frames(RE, gate, tmp_path):
    """Twenty readings of a monitor come between two frames, all while nothing is denoised."""
    gauge = Signal(name="gauge", value=0.0)
    camera = Camera(name="det", func=poisson(shape=(32, 32)))

    def plan():
        yield from bps.open_run()
        yield from bps.monitor(gauge, name="gauge_monitor")
        for _ in range(6):
            for value in range(20):
                gauge.put(float(value))
            yield from bps.trigger_and_read([camera])
        yield from bps.unmonitor(gauge)
        yield from bps.close_run()

    derived = DocumentCollector()
    with DenoiseProcess(
        model="child_denoisers:Gated",
        frames_directory=tmp_path / "denoised",
        queue_size=6,
        queue_wait_s=0.0,
    ) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        gate.touch()
        denoise.wait(60)
    assert [event["data"]["denoise_ok"] for event in derived.by_name["event"]] == [True] * 6


def test_frames_of_a_detector_that_returns_its_own_buffer_are_each_their_own(RE, gate, tmp_path):
    buffer = np.zeros((32, 32), np.uint32)

    def expose():
        buffer[:] += 1
        return buffer

    derived = DocumentCollector()
    with DenoiseProcess(
        model="child_denoisers:Gated", frames_directory=tmp_path / "denoised"
    ) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(bp.count([Camera(name="det", func=expose, exposure_s=1.0)], 4))
        last = int(buffer[0, 0])
        gate.touch()
        denoise.wait(60)
    totals = [event["data"]["det_image_raw_total"] for event in derived.by_name["event"]]
    assert totals == [value * buffer.size for value in range(last - 3, last + 1)]


def test_a_full_queue_holds_the_scan_for_a_bounded_time_and_what_is_skipped_is_told(
    RE, raw, gate, tmp_path, logged
):
    derived, held, unchanged = DocumentCollector(), [], UnchangedDocuments()
    RE.subscribe(unchanged)
    options = settings(
        model="child_denoisers:Gated", frames_directory=tmp_path / "denoised", queue_size=4
    )
    with DenoiseProcess(options, queue_wait_s=2) as denoise:

        def timed(name, doc):
            began = time.monotonic()
            denoise(name, doc)
            held.append(time.monotonic() - began)

        denoise.subscribe(derived)
        RE.subscribe(timed)
        (uid,) = RE(bp.count([replay()], 30))
        assert_emitted(raw.by_name, start=1, descriptor=1, event=30, stop=1)
        assert "event" not in derived.by_name
        assert 2 <= sum(held) < 20  # of 26 that find no room
        with pytest.raises(DenoiseTimeout, match=rf"after 0\.1 s\. Still open: {uid[:8]}\."):
            denoise.wait(0.1)
        gate.touch()
        denoise.wait(60)
    derived.validate()
    unchanged.check()
    np.testing.assert_array_equal(
        [e["data"]["det_image"] for e in raw.by_name["event"]], np.resize(FRAMES, (30, *SHAPE))
    )
    ok, reasons = values(derived, "denoise_ok"), values(derived, "denoise_reason")
    assert values(derived, "raw_seq_num") == list(range(1, 31))
    assert 4 <= sum(ok) < 30
    assert [r for r, good in zip(reasons, ok, strict=True) if good] == [""] * sum(ok)
    skipped = [r for r, good in zip(reasons, ok, strict=True) if not good]
    assert set(skipped) == {"skipped: the queue of the denoiser was full"}
    assert f"{len(skipped)} events were skipped" in logged()
    assert "The denoiser is 4 events behind: frames are skipped" in logged()
    frames = rates(derived, "det_image")
    assert [not np.isnan(f).any() for f in frames] == ok
    assert derived.by_name["stop"][0]["num_events"] == {"denoised": 30}


# Tiled stops


def all_bytes(*directories):
    for directory in directories:
        for path in Path(directory).rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


@pytest.mark.thorough
def test_a_tiled_that_hangs_as_the_denoiser_is_closed_costs_no_result(RE, raw, elsewhere, tmp_path):
    client = from_uri(elsewhere.uri)
    writing = RE.subscribe(TiledWriter(client, batch_size=1))
    (uid,) = RE(bp.count([replay()], 4))
    RE.unsubscribe(writing)
    backup = tmp_path / "backup"
    options = settings(
        tiled_uri=elsewhere.uri, frames_directory=tmp_path / "denoised", backup_directory=backup
    )
    derived = DocumentCollector()
    denoise = DenoiseProcess(options)
    denoise.subscribe(derived)
    elsewhere.process.send_signal(signal.SIGSTOP)
    try:
        for name, doc in raw.documents:
            denoise(name, doc)
        wait_for(lambda: "stop" in derived.by_name, what="the denoised run")
        denoise.close(timeout=12)
    finally:
        elsewhere.process.send_signal(signal.SIGCONT)
    (path,) = backup_files(backup)
    assert [name for name, _ in read_backup(path)].count("event") == 4
    assert replay_backup(options) == [uid]
    with client.context:
        frames = client[uid]["denoised"]["det_image"].read()
    np.testing.assert_array_equal(frames, FRAMES[:4] * 2)


def test_a_disk_that_stays_full_ends_the_run_and_says_why(RE, tiled, gate, tmp_path, monkeypatch):
    frames = np.random.default_rng(0).poisson(5, (6, 200, 200)).astype(np.uint16)
    monkeypatch.setenv("DENOISE_TEST_FRAMES", str(tmp_path / "denoised"))
    options = settings(
        model="child_denoisers:FillsTheDisk",
        tiled_uri=tiled.uri,
        frames_directory=tmp_path / "denoised",
        exposure_s=1.0,
    )
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    det = ReplayDetector(name="det", frames=ReplayFrames(frames, 1.0))
    derived = DocumentCollector()
    with DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)

        @bpp.run_decorator()
        def plan():
            for number in range(1, 7):
                yield from bps.trigger_and_read([det])
                wait_for(
                    lambda number=number: len(derived.by_name.get("event", [])) == number,
                    what=f"event {number}",
                )

        (uid,) = RE(plan())
        denoise.wait(30)
    stream = tiled.client[uid]["denoised"]
    assert values(derived, "denoise_ok") == [True] * 3 + [False] * 3
    np.testing.assert_array_equal(stream["raw_seq_num"].read(), [1, 2, 3, 4, 5, 6])
    kept = stream["det_image"].read().reshape(6, 200, 200)
    np.testing.assert_array_equal(kept[:3], frames[:3])
    assert np.isnan(kept[3:]).all()
    assert all(text.endswith("File too large") for text in stream["denoise_reason"].read()[3:])
    ended = stream.metadata["denoise"]
    assert (ended["exit_status"], ended["num_events"]) == ("fail", 6)
    assert tiled.client[uid].metadata["stop"]["exit_status"] == "success"


def test_tiled_is_stopped_in_mid_run_and_comes_back_and_its_key_is_nowhere(
    RE, raw, elsewhere, tmp_path, caplog, capfd, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    derived, det, held = DocumentCollector(), replay(), []
    options = settings(tiled_uri=elsewhere.uri, frames_directory=tmp_path / "denoised")
    client = from_uri(elsewhere.uri)
    writer = TiledWriter(client, batch_size=1)

    def write(name, doc):
        """Keep raw documents while Tiled is down, as a raw writer with a backup does."""
        if elsewhere.process.poll() is None:
            writer(name, doc)
        else:
            held.append((name, doc))

    with client.context, DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(write)
        RE.subscribe(denoise)

        def first_rows():
            with contextlib.suppress(KeyError):
                run = client[raw.by_name["start"][0]["uid"]]
                return len(run["denoised"]["denoise_ok"].read()) == 2

        @bpp.run_decorator()
        def plan():
            for _ in range(2):
                yield from bps.trigger_and_read([det])
            wait_for(first_rows, what="the first rows in Tiled")
            elsewhere.stop()
            for _ in range(3):
                yield from bps.trigger_and_read([det])

        (uid,) = RE(plan())
        finished(derived)
        (path,) = wait_for(lambda: backup_files(options.backup_path), 60, "the backup")
        with pytest.raises(DenoiseTimeout, match=r"kept in .*backup"):
            denoise.wait(0.1)
        wait_for(lambda: is_whole(path), what="all documents")
        kept = path.read_bytes()
        elsewhere.start()
        for name, doc in held:
            writer(name, doc)
        denoise.wait(90)
        assert backup_files(options.backup_path) == []

        run = client[uid]
        np.testing.assert_array_equal(run["primary"]["det_image"].read(), FRAMES[:5])
        assert run.stop["num_events"] == {"primary": 5}
        np.testing.assert_array_equal(run["denoised"]["det_image"].read(), FRAMES[:5] * 2)
        np.testing.assert_array_equal(run["denoised"]["raw_seq_num"].read(), [1, 2, 3, 4, 5])
        assert run["denoised"].metadata["denoise"]["num_events"] == 5
        assert run["denoised"].metadata["denoise"]["exit_status"] == "success"
        run.validate(raise_on_error=True)
        documents = json.dumps([list(run.documents()), run.metadata], default=str)
    derived.validate()
    ours = [record for record in caplog.records if record.name.startswith("bluesky_denoise")]
    logs = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    assert "cannot be written to Tiled" in logs
    assert "is in Tiled again" in logs
    printed = "".join(capfd.readouterr())
    shown = [logs, printed, documents, repr(derived.documents), kept.decode()]
    assert [i for i, text in enumerate(shown) if elsewhere.KEY in text] == []
    found = [p for p, b in all_bytes(tmp_path) if elsewhere.KEY.encode() in b]
    assert found == []


def test_without_tiled_all_is_kept_in_the_backup_when_it_is_closed(
    RE, tmp_path, monkeypatch, logged
):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    options = settings(tiled_uri=NOWHERE, backup_directory=tmp_path / "backup")
    derived = DocumentCollector()
    with DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(bp.count([replay()], 2))
        finished(derived)
    denoise.wait(1)  # nothing more can come of it
    (path,) = backup_files(tmp_path / "backup")
    kept = list(read_backup(path))
    validate_documents(kept)
    frames = [doc["data"]["det_image"] for name, doc in kept if name == "event"]
    np.testing.assert_array_equal(frames, FRAMES[:2] * np.float32(2))
    assert "cannot be reached" in logged()
    assert "1 denoised runs are not in Tiled but in" in logged()
    assert b"secret" not in path.read_bytes()
    assert "secret" not in logged()
