"""What may fail under a scan: the child, its queue, Tiled."""

import contextlib
import json
import logging
import os
import pickle
import re
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

import bluesky_denoise.process as process_module
from bluesky_denoise.backup import backup_files, read_backup
from bluesky_denoise.errors import DenoiseFailed, DenoiseTimeout
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.simulation import ReplayFrames
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector
from bluesky_denoise.testing import DocumentCollector, assert_emitted, validate_documents
from bluesky_denoise.tiled_sink import replay_backup

# The child dies


def test_a_child_that_is_killed_in_mid_run(RE, live, logged):
    det = replay()

    @bpp.run_decorator()
    def plan():
        for _ in range(2):
            yield from bps.trigger_and_read([det])
        wait_for(lambda: len(live.derived.by_name.get("event", [])) == 2, what="two events")
        os.kill(live.denoise.pid, signal.SIGKILL)
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    before = live.denoise.pid
    (uid,) = RE(plan())
    reason = "the denoiser process died (exit -9)"
    with pytest.raises(DenoiseFailed, match=rf"as {re.escape(reason)}: {uid[:8]}\. .*catch-up"):
        live.denoise.wait(60)
    stream = live.check(uid, 2, exit_status="fail", reason=reason)
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:2] * 2)
    np.testing.assert_array_equal(stream["raw_seq_num"].read(), [1, 2])
    stop = live.derived.by_name["stop"][0]
    assert (stop["exit_status"], stop["reason"]) == ("fail", reason)
    assert stop["num_events"] == {"denoised": 2}
    assert f"{reason}; runs cut short: {uid[:8]}" in logged()
    assert live.denoise.pid != before
    assert live.raw.by_name["stop"][0]["exit_status"] == "success"

    (after,) = RE(bp.count([det], 2))
    live.check(after, 2)


def test_a_child_that_is_killed_before_all_is_in_tiled(RE, raw, tiled, shared):
    """The derived run has ended for all who watch; it is written by the next child."""
    derived = DocumentCollector()
    token = shared.subscribe(derived)
    RE.subscribe(shared)
    (uid,) = RE(bp.count([replay()], 3))
    finished(derived)
    os.kill(shared.pid, signal.SIGKILL)
    writer = TiledWriter(tiled.client, batch_size=1)
    for name, doc in raw.documents:
        writer(name, doc)
    shared.wait(60)
    shared.unsubscribe(token)
    derived.validate()
    assert_emitted(
        {k: derived.by_name[k] for k in ("start", "event", "stop")}, start=1, event=3, stop=1
    )
    stream = tiled.client[uid]["denoised"]
    assert stream.metadata["denoise"]["exit_status"] == "success"
    np.testing.assert_array_equal(stream["det_image"].read(), FRAMES[:3] * 2)


def test_a_killed_child_with_frames_inside_the_events_is_counted_right(
    RE, raw, monkeypatch, logged
):
    """And a child that dies again and again is not started for ever."""
    monkeypatch.setattr(process_module, "_MOST_RESTARTS", 1)
    derived, det = DocumentCollector(), replay()

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        wait_for(lambda: derived.by_name.get("event"), what="an event")
        os.kill(denoise.pid, signal.SIGKILL)
        yield from bps.trigger_and_read([det])

    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        finished(derived)
        derived.validate()
        assert derived.by_name["stop"][0]["num_events"] == {"denoised": 1}
        with pytest.raises(DenoiseFailed):
            denoise.wait(60)
        wait_for(lambda: denoise._child_ready, what="the next child")
        os.kill(denoise.pid, signal.SIGKILL)
        wait_for(lambda: "Runs go on undenoised" in logged(), what="the end")
        denoise.wait(1)
        (uid,) = RE(bp.count([det], 2))
        with pytest.raises(DenoiseFailed, match=rf"did so too often .*: {uid[:8]}\."):
            denoise.wait(1)
        denoise.wait(1)  # it is told once
    raw.validate()
    assert_emitted(raw.by_name, start=2, descriptor=2, event=4, stop=2)


def test_runs_that_wait_as_the_last_child_dies_are_named(RE, monkeypatch):
    monkeypatch.setattr(process_module, "_MOST_RESTARTS", 1)
    with DenoiseProcess(settings()) as denoise:
        denoise._restarts.append(time.monotonic())
        RE.subscribe(denoise)
        os.kill(denoise.pid, signal.SIGSTOP)
        uids = [RE(bp.count([replay()], 1))[0] for _ in range(3)]
        os.kill(denoise.pid, signal.SIGKILL)
        with pytest.raises(DenoiseFailed) as caught:
            denoise.wait(60)
        assert all(uid[:8] in str(caught.value) for uid in uids)


def test_a_child_that_cannot_be_started_again_is_not_said_to_die_often(RE, monkeypatch, logged):
    def no_memory(*args):
        raise OSError("Cannot allocate memory")

    with DenoiseProcess(settings()) as denoise:
        RE.subscribe(denoise)
        monkeypatch.setattr(process_module, "Child", no_memory)
        os.kill(denoise.pid, signal.SIGKILL)
        wait_for(lambda: "Runs go on undenoised" in logged(), what="the end")
        wait_for(lambda: denoise.closed, what="the end")
        (uid,) = RE(bp.count([replay()], 1))
        reason = r"could not be started again \(OSError: Cannot allocate memory\)"
        with pytest.raises(DenoiseFailed, match=rf"died .*, and {reason} .*: {uid[:8]}\."):
            denoise.wait(1)


def test_results_that_cannot_be_read_cost_their_run_alone(RE, monkeypatch, logged):
    derived, receive, broken = DocumentCollector(), process_module.Child.receive, []

    def receive_all_but_the_first(child):
        kind, content = receive(child)
        if kind == "ready" and content and not broken:
            broken.append(content)
            raise pickle.UnpicklingError("no such class")
        return kind, content

    monkeypatch.setattr(process_module.Child, "receive", receive_all_but_the_first)
    with DenoiseProcess(settings()) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        (lost,) = RE(bp.count([replay()], 1))
        with pytest.raises(DenoiseFailed, match=f"died .*: {lost[:8]}"):
            denoise.wait(60)
        RE(bp.count([replay()], 2))
        denoise.wait(60)
    assert "What the denoiser sent cannot be read" in logged()
    assert [doc["exit_status"] for doc in derived.by_name["stop"]][-1] == "success"
    assert derived.by_name["stop"][-1]["num_events"] == {"denoised": 2}


@pytest.mark.parametrize("with_an_event", [True, False])
def test_a_run_whose_child_died_ends_once_however_many_die_after(
    RE, tmp_path, gate, with_an_event, monkeypatch
):
    monkeypatch.setenv("TILED_RETRY_ATTEMPTS", "1")
    derived, det = DocumentCollector(), replay()
    options = settings(
        model="child_denoisers:Gated", tiled_uri=NOWHERE, backup_directory=tmp_path / "backup"
    )
    if with_an_event:
        gate.touch()
        options = options.model_copy(update={"frames_directory": tmp_path / "denoised"})

    def kill():
        before = denoise.pid
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: denoise.pid != before and denoise._child_ready, what="the next child")

    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        if with_an_event:
            wait_for(lambda: derived.by_name.get("event"), what="an event")
        else:
            wait_for(lambda: all(run.sent for run in denoise._open.values()), what="the start")
        kill()
        yield from bps.trigger_and_read([det])

    with DenoiseProcess(options) as denoise:
        denoise.subscribe(derived)
        RE.subscribe(denoise)
        RE(plan())
        kill()
    derived.validate()
    assert len(derived.by_name["start"]) == len(derived.by_name["stop"]) == 1
    assert len(derived.by_name.get("event", [])) == with_an_event
    (path,) = backup_files(options.backup_path)
    assert path.stem == derived.by_name["start"][0]["uid"]


# The end of a session


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


def test_a_full_queue_holds_the_scan_for_a_bounded_time_and_what_is_skipped_is_told(
    RE, raw, gate, tmp_path, logged
):
    derived, held, unchanged = DocumentCollector(), [], UnchangedDocuments()
    RE.subscribe(unchanged)
    options = settings(
        model="child_denoisers:Gated", frames_directory=tmp_path / "denoised", queue_size=4
    )
    with DenoiseProcess(options, queue_wait_s=0.3) as denoise:

        def timed(name, doc):
            began = time.monotonic()
            denoise(name, doc)
            held.append(time.monotonic() - began)

        denoise.subscribe(derived)
        RE.subscribe(timed)
        (uid,) = RE(bp.count([replay()], 30))
        assert_emitted(raw.by_name, start=1, descriptor=1, event=30, stop=1)
        assert "event" not in derived.by_name
        assert 0.3 <= max(held) < 2
        assert sum(held) < 4
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
    np.testing.assert_array_equal(stream["det_image"].read().reshape(3, 200, 200), frames[:3])
    reason = stream["denoise_reason"].read()[3]
    assert reason.endswith("File too large")
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
    (path,) = backup_files(tmp_path / "backup")
    kept = list(read_backup(path))
    validate_documents(kept)
    frames = [doc["data"]["det_image"] for name, doc in kept if name == "event"]
    np.testing.assert_array_equal(frames, FRAMES[:2] * np.float32(2))
    assert "cannot be reached" in logged()
    assert "1 denoised runs are not in Tiled but in" in logged()
    assert b"secret" not in path.read_bytes()
    assert "secret" not in logged()
